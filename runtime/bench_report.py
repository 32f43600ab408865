"""A benchmark's figures as a table, as JSON, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from trt_resa.errors import ConfigError
from trt_resa.runtime.bench_results import PointResult


def table(results: Sequence[PointResult], title: str) -> Table:
    """Milliseconds per token by point: dense, ReSA, and how they compare."""
    found = Table(title=title, title_justify="left")
    for column in ("batch", "context", "dense", "best dense", "ReSA", "speedup", "sparse step"):
        found.add_column(column, justify="right")
    for column in ("window", "accounted", "gaps", "first token"):
        found.add_column(column, justify="right")
    for result in results:
        mode = min(
            (name for name in result.loops if name != "dense"),
            key=lambda name: result.loops[name].ms_per_token,
        )
        loop = result.loops[mode]
        found.add_row(
            str(result.batch),
            f"{result.context:,}",
            f"{result.dense_ms:.2f}",
            f"{result.best_dense_ms:.2f}",
            f"{loop.ms_per_token:.2f}",
            f"{result.speedup(mode):.2f}x",
            f"{loop.p50_ms['sparse step']:.2f}",
            f"{loop.p50_ms['window']:.2f}" if "window" in loop.p50_ms else "-",
            f"{result.parts['sparse step'].accounted:.1%}",
            "-" if result.profile is None else f"{result.profile.gaps:.1%}",
            "-" if result.first_token_s is None else f"{result.first_token_s:.2f} s",
        )
    return found


def write_json(path: Path, facts: dict[str, Any], results: Sequence[PointResult]) -> None:
    """``facts``: the GPU, versions, model and command that the figures belong to."""
    content = {**facts, "results": [result.record() for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_plot() -> None:
    """Raise ConfigError where matplotlib is missing; before hours of measuring, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--plot needs matplotlib; install it with pip install 'trt-resa[bench]'"
        ) from None


def write_plot(path: Path, title: str, results: Sequence[PointResult]) -> None:
    """Time per token against context, dense and ReSA, a pair of lines per batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, batch in enumerate(sorted({result.batch for result in results})):
        mine = sorted((r for r in results if r.batch == batch), key=lambda r: r.context)
        contexts = [result.context for result in mine]
        for label, style, values in (
            ("dense", "--", [result.best_dense_ms for result in mine]),
            ("ReSA", "-", [result.resa_ms for result in mine]),
        ):
            axes.plot(
                contexts,
                values,
                style,
                marker="o",
                color=f"C{index}",
                label=f"{label}, batch {batch}",
            )
    contexts = sorted({result.context for result in results})
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [_short(context) for context in contexts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("ms per token, dense passes included")
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _short(tokens: int) -> str:
    """131072 as 128K."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)
