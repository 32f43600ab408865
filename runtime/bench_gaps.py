"""What the profiler records of a replayed step: gaps, and the time of each kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from trt_resa.runtime.executors.forward_program import ForwardProgram

#: Kernels that a profile names, those of the most time.
_NAMED = 12


@dataclass(frozen=True)
class StepProfile:
    """``gaps``: share of the step in which no kernel runs. ``kernels``: (launches, microseconds in
    all) by name. ``busy``: sum of all kernel times over the step; more than 1 - gaps where kernels
    overlap."""

    gaps: float
    busy: float
    kernels: Mapping[str, tuple[int, float]]


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


def step_profile(events: Iterable[tuple[str, float, float]]) -> StepProfile:
    """Of (kernel, start, end) in microseconds."""
    known = list(events)
    kernels: dict[str, tuple[int, float]] = {}
    for name, start, end in known:
        count, time = kernels.get(name, (0, 0.0))
        kernels[name] = (count + 1, time + end - start)
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:_NAMED]
    span = max((end for _, _, end in known), default=0.0) - min(
        (start for _, start, _ in known), default=0.0
    )
    total = sum(time for _, time in kernels.values())
    return StepProfile(
        gaps=gap_share((start, end) for _, start, end in known),
        busy=total / span if span else 0.0,
        kernels=dict(longest),
    )


def profile_replay(program: ForwardProgram, stream: torch.cuda.Stream) -> StepProfile:
    """Of one replay of a captured program; the profiler itself lengthens gaps a little."""
    program.run()
    stream.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        program.run()
        stream.synchronize()
    return step_profile(
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    )
