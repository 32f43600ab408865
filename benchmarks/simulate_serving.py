"""The load of bench_serving.py in virtual time: the real scheduler, and forwards that cost time.

Shows within seconds, without a GPU, what ``dense_rows_while_decoding`` does to the pauses between
tokens, to the first token and to throughput.

    python -m benchmarks.simulate_serving --rows 256,512,1024 --output_tokens 2048

``Costs`` are those of Qwen2.5-7B in INT4 on an H100, from results/serving_qwen2.5-7b_h100.txt. The
linear layers of 64 and 1,024 rows were not measured there: they lie between their neighbours.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console

from benchmarks.bench_serving import FOLLOW_UP, NEW, Followed, Load, load_options, measures, table
from trt_resa.config import RectifyMode
from trt_resa.contract import Phase
from trt_resa.runtime.executors.buckets import bucket
from trt_resa.runtime.kv_cache import BlockPool
from trt_resa.runtime.schedule import Action, Forward, ForwardLimits, Rows, Window
from trt_resa.runtime.scheduler import Place, Scheduler
from trt_resa.shapes import SHAPES, shape

INTERVAL, BLOCK, NUM_TOKENS = 32, 16, 2048


@dataclass(frozen=True)
class Costs:
    """Milliseconds on the GPU; ``context`` counts cached tokens in units of 100,000.

    ``between``: from the end of a forward to the next, and to the client.
    """

    sparse: float = 2.5
    sparse_sequence: float = 0.011
    sparse_context: float = 0.377
    decode: float = 2.9
    decode_context: float = 1.87
    window: float = 5.0
    window_context: float = 2.5
    chunk: dict[int, float] = field(
        default_factory=lambda: {
            64: 9.0, 128: 13.0, 256: 14.5, 512: 16.6, 1024: 26.0, 2048: 43.9,
        }
    )  # fmt: skip
    chunk_context: float = 2.7  # of the others in a chunk's forward
    million_pairs: float = 0.7
    between: float = 0.2

    def ms(self, forward: Forward[Any]) -> float:
        actions = [action for _, action in forward.actions]
        rows = sum(action.num_rows for action in actions)
        context = sum(action.stop for action in actions) / 1e5
        if forward.phase is Phase.SPARSE:
            return self.sparse + self.sparse_sequence * rows + self.sparse_context * context
        if rows == len(actions):
            return self.decode + self.decode_context * context
        if rows <= INTERVAL:
            return self.window + self.window_context * context
        pairs = sum(a.num_rows * a.stop for a in actions if a.num_rows > INTERVAL) / 1e6
        others = sum(a.stop for a in actions if a.num_rows <= INTERVAL) / 1e5
        linears = self.chunk[bucket(rows, NUM_TOKENS)]
        return linears + self.million_pairs * pairs + self.chunk_context * others


class Request:
    """A sequence that is nothing but its window. ``cached`` tokens of the prompt are known."""

    selection, dense_exact = None, 0

    def __init__(self, mode: RectifyMode, prompt: int, cached: int, tokens: int) -> None:
        self.window = _Known(mode, INTERVAL, prompt, prompt, known=cached)
        self.max_tokens = prompt + tokens
        self.moments: list[float] = []

    @property
    def finished(self) -> bool:
        return self.window.length >= self.max_tokens

    def next_action(self) -> Action:
        return self.window.next_action()

    def block_key(self, index: int) -> bytes:
        return b""


@dataclass
class _Known(Window):
    known: int = 0

    def restart(self, cached: int) -> None:
        super().restart(max(cached, self.known))


def simulate(
    load: Load,
    mode: RectifyMode,
    tokens: int,
    follow_up: int,
    rows: int,
    context: int,
    costs: Costs,
) -> list[Followed]:
    """``follow_up``: new tokens behind prompts that are cached; 0: every prompt is new.
    ``context``: the model's ``attention_context``."""
    limits = ForwardLimits(
        num_tokens=NUM_TOKENS,
        logit_rows=max(INTERVAL, len(load.contexts)),
        rectify_rows=max(INTERVAL, len(load.contexts)),
        mixed_rows=rows,
        attention_context=context,
    )
    longest = sum(load.contexts) + len(load.contexts) * (follow_up + tokens + BLOCK)
    pool = BlockPool(longest // BLOCK, BLOCK, reuse=False)
    scheduler: Scheduler[Request] = Scheduler(pool, len(load.contexts), limits)
    requests = [
        Request(mode, n + follow_up, n // BLOCK * BLOCK if follow_up else 0, tokens)
        for n in load.contexts
    ]
    now, arrived = 0.0, 0
    while arrived < len(requests) or not scheduler.idle:
        if scheduler.idle:
            now = max(now, load.arrivals[arrived])
        while arrived < len(requests) and load.arrivals[arrived] <= now:
            scheduler.submit(requests[arrived])
            arrived += 1
        forward: Forward[Place[Request]] | None = scheduler.next()
        assert forward is not None
        now += (costs.ms(forward) + costs.between) / 1e3
        for place, action in forward.actions:
            place.sequence.window.advance(action)
            if action.logits is Rows.LAST and not action.replay:
                place.sequence.moments.append(now)
        scheduler.done(forward)
    pairs = zip(load.arrivals, requests, strict=True)
    return [Followed(arrival, request.moments) for arrival, request in pairs]


@click.command(help=__doc__)
@click.option("--shape", "shape_name", type=click.Choice(list(SHAPES)), default="qwen2.5-7b",
              show_default=True, help="gives attention_context")  # fmt: skip
@click.option("--rows", default="512", show_default=True, help="dense_rows_while_decoding; several")
@load_options
@click.option("--follow_up", type=click.IntRange(1), default=128, show_default=True)
def main(
    shape_name: str,
    rows: str,
    requests: int,
    contexts: tuple[int, int],
    output_tokens: int,
    follow_up: int,
    rate: float,
    modes: list[RectifyMode],
    seed: int,
) -> None:
    load = Load.spread(requests, *contexts, rate, random.Random(seed))
    context = shape(shape_name, contexts[1]).attention_context
    for bound in map(int, rows.split(",")):
        results = []
        for mode in modes:
            for turn, more in ((NEW, 0), (FOLLOW_UP, follow_up)):
                served = simulate(load, mode, output_tokens, more, bound, context, Costs())
                results.append({"mode": mode, "turn": turn, **measures(served)})
        click.echo(f"dense_rows_while_decoding {bound}")
        Console(width=100).print(table(results))


if __name__ == "__main__":
    main()
