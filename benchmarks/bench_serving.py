"""Load on an LLM through its Python API: requests that arrive over time, dense mode against ReSA.

Every mode gets the same load: contexts spread evenly on a log scale, in random order, Poisson
arrivals, random token ids, outputs of one length. It comes in two turns. In the first, every prompt
is new and is read in chunks while others decode. In the second, once all have ended, each comes
again with ``--follow_up`` more tokens, so that all but those are in the cache: decoding is what is
left. Measured from the client's side, by the pieces that ``generate_async`` streams.

    python benchmarks/bench_serving.py --shape qwen2.5-7b

A shape gets random INT4 weights and, on a GPU, runs on the executor tensorrt_rtx.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from trt_resa import LLM, BuildConfig, SamplingParams, SchedulerConfig, SparseAttentionConfig
from trt_resa.builder.random_engine import build_random
from trt_resa.cli_options import given, options_of
from trt_resa.config import RectifyMode
from trt_resa.runtime.executors.choose import ExecutorChoice
from trt_resa.shapes import SHAPES, shape

Command = Callable[..., Any]

NEW, FOLLOW_UP = "new prompts", "follow-up"
#: Requests of the warm-up have so many tokens, and generate three windows.
WARM_UP_TOKENS = 256


@dataclass(frozen=True)
class Load:
    """Requests by their arrival in seconds; each has a prompt of its ``contexts`` tokens."""

    arrivals: list[float]
    contexts: list[int]

    @classmethod
    def spread(
        cls, count: int, shortest: int, longest: int, rate: float, random: random.Random
    ) -> Load:
        """``rate``: arrivals per second on average; the first comes at once."""
        contexts = np.geomspace(shortest, longest, count).round().astype(int).tolist()
        random.shuffle(contexts)
        gaps = [random.expovariate(rate) for _ in range(count - 1)]
        return cls(np.cumsum([0.0, *gaps]).tolist(), contexts)


@dataclass(frozen=True)
class Followed:
    """A request as its client saw it: seconds of its arrival and of each token."""

    arrival: float
    tokens: list[float]


async def serve(
    llm: LLM, prompts: list[list[int]], arrivals: list[float], tokens: int, mode: RectifyMode
) -> list[Followed]:
    """Send each prompt at its time and follow it to its end. Seconds count from the start."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()

    async def follow(prompt: list[int], arrival: float) -> Followed:
        await asyncio.sleep(start + arrival - time.perf_counter())
        handle = llm.generate_async(prompt, params, streaming=True, rectify_mode=mode)
        moments: list[float] = []
        async for output in handle:
            now = time.perf_counter() - start
            moments += [now] * len(output.outputs[0].token_ids_diff)
        return Followed(arrival, moments)

    return list(await asyncio.gather(*map(follow, prompts, arrivals)))


def measures(requests: list[Followed]) -> dict[str, Any]:
    """What a table shows. None where there is nothing to measure.

    ``reading_s``: time in which any request waits for its first token; ``decoding_s`` is the rest.
    ``all_decode_s``: from the last first token to the first end.
    """
    end = max(request.tokens[-1] for request in requests)
    tokens = np.sort(np.concatenate([request.tokens for request in requests]))
    first = np.array([request.tokens[0] - request.arrival for request in requests])
    reading = _union([(request.arrival, request.tokens[0]) for request in requests])
    reading_s = sum(b - a for a, b in reading)
    decoded = sum(not any(a < moment <= b for a, b in reading) for moment in tokens)
    last_first = max(request.tokens[0] for request in requests)
    first_end = min(request.tokens[-1] for request in requests)
    gaps = [
        (after - before, not any(before < b and after > a for a, b in reading))
        for request in requests
        for before, after in zip(request.tokens, request.tokens[1:], strict=False)
    ]
    return {
        "seconds": end,
        "tokens": len(tokens),
        "tokens_per_s": len(tokens) / end,
        "reading_s": reading_s,
        "decoding_s": end - reading_s,
        "decoding_tokens_per_s": _rate(decoded, end - reading_s),
        "all_decode_s": max(0.0, first_end - last_first),
        "all_decode_tokens_per_s": _rate(
            int(((tokens > last_first) & (tokens <= first_end)).sum()), first_end - last_first
        ),
        "first_token_s": _percentiles(first),
        "between_tokens_ms": _percentiles(np.array([gap for gap, _ in gaps]) * 1e3),
        "between_tokens_decoding_ms": _percentiles(np.array([g for g, free in gaps if free]) * 1e3),
    }


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, stop))
    return merged


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p99, most = np.percentile(values, (50, 99, 100)).tolist()
    return {"p50": p50, "p99": p99, "max": most, "p99_over_p50": p99 / p50 if p50 else None}


def run(
    llm: LLM, load: Load, tokens: int, follow_up: int, mode: RectifyMode, random: random.Random
) -> Iterator[dict[str, Any]]:
    """The two turns of ``mode``, or the first alone if ``follow_up`` is 0."""
    vocab = llm.model_config.vocab_size

    def draw(count: int) -> list[int]:
        return random.choices(range(vocab), k=count)

    def turn(name: str, prompts: list[list[int]]) -> dict[str, Any]:
        before = llm.metrics()
        requests = asyncio.run(serve(llm, prompts, load.arrivals, tokens, mode))
        after = llm.metrics()
        fields = ("sparse_steps", "dense_passes", "preemptions", "kv_blocks_reused")
        counts = {name: getattr(after, name) - getattr(before, name) for name in fields}
        return {"mode": mode, "turn": name, **measures(requests), **counts}

    short = [draw(min(WARM_UP_TOKENS, context)) for context in load.contexts]
    soon = [0.02 * number for number in range(len(short))]
    windows = 3 * llm.sparse_attention_config.rectify_interval
    asyncio.run(serve(llm, short, soon, min(windows, tokens), mode))
    prompts = [draw(context) for context in load.contexts]
    yield turn(NEW, prompts)
    if follow_up:
        yield turn(FOLLOW_UP, [prompt + draw(follow_up) for prompt in prompts])


#: Rows of the table: name, path into a result, digits.
ROWS = (
    ("in all, s", "seconds", 1),
    ("in all, tokens/s", "tokens_per_s", 0),
    ("prompts are read, s", "reading_s", 1),
    ("decoding alone, s", "decoding_s", 1),
    ("decoding alone, tokens/s", "decoding_tokens_per_s", 0),
    ("all decode, tokens/s", "all_decode_tokens_per_s", 0),
    ("first token, s, p50", "first_token_s.p50", 2),
    ("first token, s, p99", "first_token_s.p99", 2),
    ("between tokens, ms, p50", "between_tokens_ms.p50", 1),
    ("between tokens, ms, p99", "between_tokens_ms.p99", 1),
    ("between tokens, ms, max", "between_tokens_ms.max", 1),
    ("p99 by p50", "between_tokens_ms.p99_over_p50", 2),
    ("decoding alone, ms, p50", "between_tokens_decoding_ms.p50", 1),
    ("decoding alone, ms, p99", "between_tokens_decoding_ms.p99", 1),
)


def table(results: list[dict[str, Any]]) -> Table:
    """A column per mode and turn, the modes of a turn side by side."""
    made = Table("")
    results = sorted(results, key=lambda item: item["turn"] == FOLLOW_UP)
    for item in results:
        made.add_column(f"{item['turn']}\n{item['mode']}", justify="right")
    for name, path, digits in ROWS:
        made.add_row(name, *(_number(item, path, digits) for item in results))
    return made


def _number(result: Any, path: str, digits: int) -> str:
    for key in path.split("."):
        result = None if result is None else result[key]
    return "-" if result is None else f"{result:,.{digits}f}"


def load_options(command: Command) -> Command:
    """The options of a load that ``main`` and ``simulate_serving`` share."""
    options = [
        click.option("--requests", type=click.IntRange(1, 256), default=16, show_default=True),
        click.option("--contexts", type=click.IntRange(1), nargs=2, default=(8192, 131072),
                     show_default=True, help="tokens of the shortest and the longest prompt"),
        click.option("--output_tokens", type=click.IntRange(2), default=1024, show_default=True),
        click.option("--rate", type=click.FloatRange(0, min_open=True), default=4.0,
                     show_default=True, help="arrivals per second"),
        click.option("--modes", default="dense,fused", show_default=True, callback=_modes),
        click.option("--seed", default=0, show_default=True),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _modes(context: click.Context, option: click.Parameter, names: str) -> list[RectifyMode]:
    modes: list[Any] = names.split(",")
    if not set(modes) <= set(get_args(RectifyMode)):
        raise click.BadParameter(f"{names!r} must name modes out of {get_args(RectifyMode)}")
    return modes


@click.command(help=__doc__)
@click.option("--engine_dir", type=click.Path(path_type=Path), help="engine directory")
@click.option("--shape", "shape_name", type=click.Choice(list(SHAPES)), help="random weights")
@click.option("--executor", type=click.Choice(get_args(ExecutorChoice)), default="auto")
@load_options
@click.option("--follow_up", type=click.IntRange(0), default=128, show_default=True,
              help="tokens that the second turn adds to each prompt; 0: one turn")  # fmt: skip
@click.option("--max_num_tokens", default=2048, show_default=True, help="with --shape")
@click.option("--output", type=click.Path(path_type=Path), help="write JSON to this file")
@options_of(SchedulerConfig)
@options_of(SparseAttentionConfig)
def main(
    engine_dir: Path | None,
    shape_name: str | None,
    executor: ExecutorChoice,
    requests: int,
    contexts: tuple[int, int],
    output_tokens: int,
    follow_up: int,
    rate: float,
    modes: list[RectifyMode],
    seed: int,
    max_num_tokens: int,
    output: Path | None,
    **flags: Any,
) -> None:
    if (engine_dir is None) == (shape_name is None):
        raise click.UsageError("give either --engine_dir DIR or --shape NAME")
    load = Load.spread(requests, *contexts, rate, random.Random(seed))
    scheduler = SchedulerConfig(**given(SchedulerConfig, flags))
    sparse = given(SparseAttentionConfig, flags)
    with tempfile.TemporaryDirectory() as work:
        if shape_name is not None:
            engine_dir = Path(work) / shape_name
            longest = contexts[1] + follow_up + output_tokens
            build = BuildConfig(
                dtype="bfloat16",
                quantization="w4a16",
                executors=("torch",),
                max_batch_size=requests,
                max_seq_len=longest,
                max_num_tokens=max_num_tokens,
            )
            built = SparseAttentionConfig(**sparse)
            model = shape(shape_name, longest)
            build_random(shape_name, model, engine_dir, build, built, share_layers=True)
            if executor == "auto" and torch.cuda.is_available():
                executor = "tensorrt_rtx"
        assert engine_dir is not None
        with LLM(
            engine_dir,
            executor=executor,
            scheduler_config=scheduler,
            sparse_attention_config=sparse,
        ) as llm:
            gc.collect()
            gc.freeze()  # as docs/serving.md advises
            results = []
            for number, mode in enumerate(modes):
                own = random.Random(f"{seed} {number}")
                for result in run(llm, load, output_tokens, follow_up, mode, own):
                    click.echo(f"{mode}, {result['turn']}: {result['seconds']:.1f} s", err=True)
                    results.append(result)
            facts = {
                "model": shape_name or engine_dir.name,
                "device": torch.cuda.get_device_name() if llm.device.type == "cuda" else "cpu",
                "torch": torch.__version__,
                "sparse_attention": dataclasses.asdict(llm.sparse_attention_config),
                "limits": dataclasses.asdict(llm.limits),
                "scheduler": dataclasses.asdict(scheduler),
                "kv_blocks": llm.metrics().kv_blocks_total,
                "contexts": load.contexts,
                "arrivals_s": load.arrivals,
                "command": shlex.join(["python", *sys.argv]),
            }
    Console(width=100).print(table(results))
    if output is not None:
        output.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
