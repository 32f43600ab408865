"""``trt-resa tune``: settings of sparse attention for a target, found on your own prompts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from trt_resa.cli_options import SPARSE_SECTION, given
from trt_resa.config import SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.runtime.quality.opening import engine_options, open_llm, sparse_changes
from trt_resa.runtime.quality.prompt_file import read_prompts
from trt_resa.runtime.quality.search import Choice, Measured, Target, Trial, search
from trt_resa.runtime.quality.tasks import PromptMaker
from trt_resa.runtime.quality.tune import Samples

_POSITIVE = click.IntRange(min=1)


@click.command()
@click.option("--prompts", type=click.Path(path_type=Path), required=True,
              help='JSONL of sample prompts: {"prompt": text}')  # fmt: skip
@click.option("--agreement", type=click.FloatRange(0, 1),
              help="target: at least this share of the dense model's tokens")  # fmt: skip
@click.option("--time_per_token_ms", type=click.FloatRange(0, min_open=True),
              help="target: at most this time, one sequence at a time")  # fmt: skip
@click.option("--max_tokens", type=_POSITIVE, default=128, show_default=True,
              help="tokens to compare and to time per prompt")  # fmt: skip
@click.option("--max_trials", type=_POSITIVE, default=20, show_default=True,
              help="settings to try at most")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), required=True,
              help="YAML to write, for --config of the other commands")  # fmt: skip
@engine_options
def tune(
    prompts: Path,
    agreement: float | None,
    time_per_token_ms: float | None,
    max_tokens: int,
    max_trials: int,
    output: Path,
    **flags: Any,
) -> None:
    """Search keep_ratio, rectify_interval and dense_below for a target, and write a YAML.

    For --agreement the fastest settings that reach it, for --time_per_token_ms those nearest to
    dense. A setting given as a flag stays as it is.
    """
    if (agreement is None) == (time_per_token_ms is None):
        raise ConfigError("give one target: either --agreement or --time_per_token_ms")
    target = Target(agreement, time_per_token_ms)
    user_prompts = read_prompts(prompts)
    changes = sparse_changes(flags)
    with open_llm(flags) as llm:
        base = llm.sparse_attention_config
        if base.rectify_mode not in ("fused", "separate"):
            raise ConfigError(
                f"rectify_mode {base.rectify_mode} leaves nothing to tune; use fused or separate"
            )
        maker = PromptMaker(llm.tokenizer, flags["chat"])
        ids = [maker.ids(maker.prompt(prompt.text)) for prompt in user_prompts]
        samples = Samples(llm, base, ids, max_tokens)
        dense = samples.dense()
        _note(f"dense: {_shown(dense)}")

        def measure(choice: Choice) -> Measured:
            measured = samples.measure(choice)
            _note(f"{_named(choice)}: {_shown(measured)}")
            return measured

        grid = samples.grid(given(SparseAttentionConfig, flags))
        best, trials = search(measure, target, grid, max_trials)
        Console(width=100).print(_table(trials, target, best))
        if best is None:
            raise ConfigError(_nothing_found(target, trials))
        chosen = samples.settings(best.choice)
    if best.measured.ms_per_token >= dense.ms_per_token:
        _note(
            f"dense decoding takes no longer here ({dense.ms_per_token:.2f} ms a token): sparse "
            "steps pay at longer contexts than these prompts have"
        )
    kept = {"rectify_mode": chosen.rectify_mode, **changes, **vars(best.choice)}
    _write(output, kept, best, target)
    _note(f"wrote {output}; give it as --config {output}")


def _table(trials: list[Trial], target: Target, best: Trial | None) -> Table:
    table = Table(title="Trials", title_justify="left")
    for column in ("keep_ratio", "rectify_interval", "dense_below", "agreement, %", "ms a token"):
        table.add_column(column, justify="right")
    table.add_column("target")
    for trial in trials:
        choice, measured = trial.choice, trial.measured
        met = "met" if target.met(measured) else "missed"
        table.add_row(
            str(choice.keep_ratio),
            str(choice.rectify_interval),
            str(choice.dense_below),
            f"{100 * measured.agreement:.2f}",
            f"{measured.ms_per_token:.2f}",
            "chosen" if trial == best else met,
        )
    return table


def _nothing_found(target: Target, trials: list[Trial]) -> str:
    if target.agreement is not None:
        nearest = max(trials, key=lambda trial: trial.measured.agreement)
        wanted = f"an agreement of {target.agreement}"
    else:
        nearest = min(trials, key=lambda trial: trial.measured.ms_per_token)
        wanted = f"{target.ms_per_token} ms a token"
    return (
        f"none of {len(trials)} trials reached {wanted}; nearest came {_named(nearest.choice)} "
        f"with {_shown(nearest.measured)}; ask for less, allow more --max_trials, or fix fewer "
        "settings"
    )


def _named(choice: Choice) -> str:
    return ", ".join(f"{key} {value}" for key, value in vars(choice).items())


def _shown(measured: Measured) -> str:
    return f"agreement {measured.agreement:.2%}, {measured.ms_per_token:.2f} ms a token"


def _write(path: Path, settings: dict[str, Any], best: Trial, target: Target) -> None:
    wanted = (
        f"agreement of at least {target.agreement}"
        if target.agreement is not None
        else f"at most {target.ms_per_token} ms a token"
    )
    head = (
        f"# {shlex.join(['trt-resa', *sys.argv[1:]])}\n# target: {wanted}; measured: "
        f"{_shown(best.measured)}\n"
    )
    try:
        path.write_text(head + yaml.safe_dump({SPARSE_SECTION: settings}), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written: {error}") from None


def _note(text: str) -> None:
    click.echo(f"[trt-resa] {text}", err=True)
