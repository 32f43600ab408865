"""Which settings to try next: a search over three of them that knows no model.

More blocks bring the output nearer to dense and take more time, so on the way from few to many
there is a last setting that is fast enough and a first one that is near enough. ``search`` finds
that one by bisection over keep_ratio, then tries it and its neighbours with other intervals, then
lets short sequences attend to everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    keep_ratio: float
    rectify_interval: int
    dense_below: int


@dataclass(frozen=True)
class Measured:
    """``agreement``: share of tokens that the dense model would have chosen too, from 0 to 1."""

    agreement: float
    ms_per_token: float


@dataclass(frozen=True)
class Trial:
    choice: Choice
    measured: Measured


@dataclass(frozen=True)
class Target:
    """One of the two: the least agreement, or the most milliseconds a token."""

    agreement: float | None = None
    ms_per_token: float | None = None

    def __post_init__(self) -> None:
        assert (self.agreement is None) != (self.ms_per_token is None)

    def met(self, measured: Measured) -> bool:
        if self.agreement is not None:
            return measured.agreement >= self.agreement
        assert self.ms_per_token is not None
        return measured.ms_per_token <= self.ms_per_token

    def rank(self, measured: Measured) -> tuple[float, float]:
        """Smaller is better, among those that meet the target."""
        if self.agreement is not None:
            return measured.ms_per_token, -measured.agreement
        return -measured.agreement, measured.ms_per_token


@dataclass(frozen=True)
class Grid:
    """Values to choose from, each in ascending order. The first interval tried is ``interval``."""

    keep_ratios: Sequence[float]
    intervals: Sequence[int]
    dense_below: Sequence[int]
    interval: int


def search(
    measure: Callable[[Choice], Measured], target: Target, grid: Grid, max_trials: int
) -> tuple[Trial | None, list[Trial]]:
    """The best choice that was seen to meet ``target``, None if none did, and all trials in order.

    ``measure`` is called at most ``max_trials`` times, never twice with the same choice.
    """
    seen: dict[Choice, Measured] = {}

    def met(choice: Choice) -> bool | None:
        """None when there are no trials left."""
        if choice not in seen:
            if len(seen) == max_trials:
                return None
            seen[choice] = measure(choice)
        return target.met(seen[choice])

    def best() -> Choice | None:
        good = [choice for choice, measured in seen.items() if target.met(measured)]
        return min(good, key=lambda choice: target.rank(seen[choice]), default=None)

    lowest = grid.dense_below[0]
    edge = _bisect(
        len(grid.keep_ratios),
        lambda i: met(Choice(grid.keep_ratios[i], grid.interval, lowest)),
        upwards=target.agreement is not None,
    )
    for ratio in (edge, edge - 1, edge + 1):
        for interval in grid.intervals:
            if 0 <= ratio < len(grid.keep_ratios):
                met(Choice(grid.keep_ratios[ratio], interval, lowest))
    near = best()
    if near is not None:
        ratio = grid.keep_ratios.index(near.keep_ratio)
        for keep_ratio in grid.keep_ratios[max(0, ratio - 1) : ratio + 1][::-1]:
            for below in grid.dense_below:
                met(Choice(keep_ratio, near.rectify_interval, below))
    found = best()
    trials = [Trial(choice, measured) for choice, measured in seen.items()]
    return (None if found is None else Trial(found, seen[found])), trials


def _bisect(count: int, good: Callable[[int], bool | None], upwards: bool) -> int:
    """The first index that is good when goodness grows ``upwards``, else the last that is.

    The nearest end where none is, or where ``good`` has no answer.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        answer = good(middle)
        if answer is None:
            break
        if answer == upwards:
            high = middle
        else:
            low = middle + 1
    edge = low if upwards else low - 1
    return min(max(edge, 0), count - 1)
