"""``trt-resa eval``: what sparse attention costs in quality."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from trt_resa.errors import ConfigError
from trt_resa.runtime.quality import plots, report
from trt_resa.runtime.quality.evaluate import Evaluation, Plan
from trt_resa.runtime.quality.forcing import ForcingLLM
from trt_resa.runtime.quality.opening import engine_options, open_llm
from trt_resa.runtime.quality.prompt_file import read_prompts
from trt_resa.runtime.quality.settings import MODES, parse_modes, parse_sweep, variants
from trt_resa.runtime.quality.tasks import TASKS, TEXT, parse_tasks
from trt_resa.runtime.quality.texts import read_texts

_POSITIVE = click.IntRange(min=1)


@click.command("eval")
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="which tasks")
@click.option("--modes", default=",".join(MODES), show_default=True,
              help="which modes; dense is always among them")  # fmt: skip
@click.option("--sweep", "sweeps", multiple=True,
              help="key=value,value: also with these settings; may be repeated")  # fmt: skip
@click.option("--sweep_modes", default="none,fused", show_default=True, help="modes of the sweeps")
@click.option("--lengths", default="1024", show_default=True,
              help="tokens of a prompt, or of a text before its forced part; a list")  # fmt: skip
@click.option("--answer_tokens", default="1000", show_default=True,
              help="tokens of the answer of a chain (arithmetic, lists); a list")  # fmt: skip
@click.option("--filler_tokens", type=click.IntRange(min=0), default=0, show_default=True,
              help="tokens of a text that says nothing, before a chain's question")  # fmt: skip
@click.option("--forced_tokens", type=_POSITIVE, default=128, show_default=True,
              help="tokens of a text, or of the dense answer to a prompt, to compare")  # fmt: skip
@click.option("--samples", type=_POSITIVE, default=5, show_default=True, help="per task and length")
@click.option("--depths", type=_POSITIVE, default=5, show_default=True,
              help="places in the text where needles hide, in turn")  # fmt: skip
@click.option("--text", "texts", multiple=True, type=click.Path(path_type=Path),
              help="file for the task text; may be repeated [default: Python's reference, a "
              "module's source, a licence]")  # fmt: skip
@click.option("--prompts", type=click.Path(path_type=Path),
              help='JSONL of your own: {"prompt": text, "answers": [texts, optional]}')  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="of the samples")
@click.option("--output", type=click.Path(path_type=Path), help="write JSON to this file")
@click.option("--markdown", type=click.Path(path_type=Path), help="write the tables to this file")
@click.option("--plot_dir", type=click.Path(path_type=Path), help="write PNGs to this directory")
@engine_options
def evaluate(
    tasks: str,
    modes: str,
    sweeps: tuple[str, ...],
    sweep_modes: str,
    lengths: str,
    answer_tokens: str,
    filler_tokens: int,
    forced_tokens: int,
    samples: int,
    depths: int,
    texts: tuple[Path, ...],
    prompts: Path | None,
    seed: int,
    output: Path | None,
    markdown: Path | None,
    plot_dir: Path | None,
    **flags: Any,
) -> None:
    """Measure what sparse attention costs in quality, mode by mode.

    No task needs a download. Everything is compared with dense on the same prompts.
    """
    chosen = parse_tasks(tasks)
    plan = Plan(
        tasks=chosen,
        lengths=_numbers("--lengths", lengths),
        samples=samples,
        depths=depths,
        answer_tokens=_numbers("--answer_tokens", answer_tokens),
        filler_tokens=filler_tokens,
        forced_tokens=forced_tokens,
        texts=read_texts(texts) if TEXT in chosen else {},
        prompts=read_prompts(prompts) if prompts is not None else [],
        seed=seed,
        chat=flags["chat"],
    )
    if not plan.tasks and not plan.prompts:
        raise ConfigError(
            f"no task was given; choose --tasks from {', '.join(TASKS)}, or --prompts"
        )
    swept = [parse_sweep(each) for each in sweeps]
    chosen_modes = parse_modes(modes)
    swept_modes = tuple(mode for mode in parse_modes(sweep_modes) if mode != "dense")
    if plot_dir is not None:
        plots.check_plots(plot_dir)
    with open_llm(flags) as llm:
        below = llm.sparse_attention_config.dense_below
        if below and plan.shortest <= below:
            _note(
                f"sequences of up to {below} tokens are dense (dense_below); --dense_below 0 "
                "measures what sparse attention would cost them"
            )
        found = variants(llm.sparse_attention_config, chosen_modes, swept, swept_modes)
        start = time.perf_counter()
        results = Evaluation(llm, found, plan, _note).run()
        seconds = time.perf_counter() - start
        facts = _facts(llm, flags["engine_dir"], plan, seconds)
    for grid in report.grids(results):
        Console(width=160).print(grid.rich())
    if output is not None:
        report.write_json(output, facts, results)
    if markdown is not None:
        report.write_markdown(markdown, facts, results)
    if plot_dir is not None:
        title = f"{facts['model']}, keep_ratio {llm.sparse_attention_config.keep_ratio}"
        for path in plots.write_plots(plot_dir, title, results, found):
            _note(f"wrote {path}")


def _facts(llm: ForcingLLM, engine_dir: Path, plan: Plan, seconds: float) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if llm.device.type == "cuda" else "cpu"
    settings = dataclasses.asdict(llm.sparse_attention_config)
    named = ("block_size", "keep_ratio", "min_blocks", "local_blocks", "sink_blocks")
    return {
        "model": engine_dir.resolve().name,
        "command": shlex.join(["trt-resa", *sys.argv[1:]]),
        "device": device,
        "torch": torch.__version__,
        "settings": ", ".join(
            f"{key} {settings[key]}" for key in (*named, "rectify_interval", "dense_below")
        ),
        "seed": plan.seed,
        "minutes": round(seconds / 60, 1),
    }


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ConfigError(f"{flag} {text!r} must be numbers of tokens, such as 1024,4096")
    return found


def _note(text: str) -> None:
    click.echo(f"[trt-resa] {text}", err=True)
