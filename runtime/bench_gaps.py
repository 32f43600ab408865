"""The share of a replayed step in which no kernel runs, from the profiler's records."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from trt_resa.runtime.executors.forward_program import ForwardProgram


def gap_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that no (start, end) covers."""
    ordered = sorted(intervals)
    if not ordered:
        return 0.0
    begin, covered, until = ordered[0][0], 0.0, ordered[0][0]
    for start, end in ordered:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1.0 - covered / (until - begin)


def replay_gaps(program: ForwardProgram, stream: torch.cuda.Stream) -> float:
    """Of one replay of a captured program; the profiler itself lengthens gaps a little."""
    program.run()
    stream.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        program.run()
        stream.synchronize()
    return gap_share(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    )
