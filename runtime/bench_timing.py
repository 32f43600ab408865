"""How benchmarks time what a GPU replays."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

#: Seconds of replays before any counts: where half a gigabyte had just been written, up to 18 took
#: 16 % longer than all later ones, with our kernel as with FlashAttention's.
WARM_UP_S = 0.03
#: What a rotation over copies reads at least; the L2 cache of an H100 holds 50 MB.
COLD_BYTES = 200 << 20


def cold_copies(bytes_read: int) -> int:
    """Copies in a rotation whose launches, of ``bytes_read`` each, find the L2 cache cold."""
    return max(2, math.ceil(COLD_BYTES / bytes_read))


def replay_ms(
    replay: Callable[[], object],
    replays: int,
    stream: torch.cuda.Stream | None = None,
    before: Callable[[], object] = lambda: None,
) -> float:
    """Median milliseconds of ``replay`` on ``stream``, by default the current one.

    The first call may capture what later ones replay. ``before`` runs before each, untimed.
    """

    def once() -> float:
        before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        replay()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end)

    once()
    warm = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < warm:
        once()
    return statistics.median(once() for _ in range(replays))


def graph_us(
    launches: Sequence[Callable[[], object]], replays: int = 30, cold: bool = False
) -> float:
    """Median microseconds per launch over replays of a graph that holds all ``launches``.

    ``cold``: the L2 cache is overwritten before each replay; without it, the launches themselves
    must read more than the cache holds.
    """
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    flush = torch.empty(256 << 20 if cold else 0, dtype=torch.int8, device="cuda")
    return replay_ms(graph.replay, replays, before=flush.zero_) * 1e3 / len(launches)


def read_gb_per_s() -> float:
    """Bandwidth of reading 2 GiB: the ceiling of whatever reads a cache."""
    words = torch.ones(1 << 29, dtype=torch.float32, device="cuda")
    out = torch.empty((), device="cuda")
    us = graph_us([lambda: torch.amax(words, dim=0, out=out)] * 3)
    return words.numel() * 4 / us / 1e3
