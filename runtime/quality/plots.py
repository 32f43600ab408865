"""Results as plots: KL along the window and along the text, right answers by keep_ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trt_resa.errors import ConfigError
from trt_resa.runtime.quality.results import Result, mean
from trt_resa.runtime.quality.settings import Variant


def check_plots(directory: Path) -> None:
    """Raise ConfigError where matplotlib is missing or ``directory`` cannot be made."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--plot_dir needs matplotlib; install it with pip install 'trt-resa[eval]'"
        ) from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--plot_dir {directory} cannot be made: {error}") from None


def write_plots(
    directory: Path, title: str, results: Sequence[Result], variants: Sequence[Variant]
) -> list[Path]:
    """The plots that ``results`` have figures for."""
    modes = [variant for variant in variants if variant.changed is None]
    forced = [result for result in results if result.drift is not None]
    written = []
    if forced:
        written.append(directory / "kl_by_position.png")
        _by_position(written[-1], title, forced, modes)
        written.append(directory / "kl_along_text.png")
        _along_text(written[-1], title, forced, modes)
    ratios = [variant for variant in variants if variant.changed in (None, "keep_ratio")]
    answered = [r for r in results if r.answers is not None and r.answers.score is not None]
    if answered and any(variant.changed for variant in ratios):
        written.append(directory / "score_by_keep_ratio.png")
        _by_keep_ratio(written[-1], title, answered, ratios)
    return written


def _by_position(
    path: Path, title: str, forced: Sequence[Result], modes: Sequence[Variant]
) -> None:
    figure, axes = _figure(title)
    for variant in modes:
        drifts = [r.drift for r in forced if r.variant == variant.name and r.drift is not None]
        if variant.sparse.rectify_mode == "none":
            level = mean([drift.mean_kl for drift in drifts])
            axes.axhline(level, linestyle="--", color="gray", label="none, on average")
            continue
        by_position: dict[int, list[float]] = {}
        for drift in drifts:
            for position, kl in drift.kl_by_position.items():
                by_position.setdefault(position, []).append(kl)
        places = sorted(by_position)
        axes.plot(places, [mean(by_position[p]) for p in places], marker="o", label=variant.name)
    axes.set_xlabel("sparse steps since the last dense pass")
    _finish(figure, axes, path, "KL from dense, nats")


def _along_text(path: Path, title: str, forced: Sequence[Result], modes: Sequence[Variant]) -> None:
    figure, axes = _figure(title)
    for variant in modes:
        pieces = [
            r.drift.kl_by_piece for r in forced if r.variant == variant.name and r.drift is not None
        ]
        count = min(map(len, pieces))
        levels = [mean([piece[i] for piece in pieces]) for i in range(count)]
        axes.plot(range(1, count + 1), levels, marker="o", label=variant.name)
    axes.set_xlabel("eighths of the forced text")
    _finish(figure, axes, path, "KL from dense, nats")


def _by_keep_ratio(
    path: Path, title: str, answered: Sequence[Result], variants: Sequence[Variant]
) -> None:
    figure, axes = _figure(title)
    for mode in dict.fromkeys(variant.sparse.rectify_mode for variant in variants):
        mine = {v.sparse.keep_ratio: v.name for v in variants if v.sparse.rectify_mode == mode}
        ratios = sorted(mine)
        scores = [
            100 * mean([_score(r) for r in answered if r.variant == mine[ratio]])
            for ratio in ratios
        ]
        if mode == "dense":
            axes.axhline(scores[0], linestyle="--", color="gray", label="dense")
        else:
            axes.plot(ratios, scores, marker="o", label=mode)
    axes.set_xlabel("keep_ratio")
    _finish(figure, axes, path, "right answers, mean over the tasks, %")


def _score(result: Result) -> float:
    assert result.answers is not None
    assert result.answers.score is not None
    return result.answers.score


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(True, alpha=0.3)
    return figure, axes


def _finish(figure: Any, axes: Any, path: Path, label: str) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
