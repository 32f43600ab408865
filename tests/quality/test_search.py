"""The search against trying everything, on problems whose answers follow from formulas."""

from __future__ import annotations

import itertools

import pytest

from trt_resa.runtime.quality.search import Choice, Grid, Measured, Target, search

GRID = Grid(
    keep_ratios=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
    intervals=(16, 32, 64),
    dense_below=(0,),
    interval=32,
)


def measure(choice: Choice) -> Measured:
    """More blocks and shorter windows: nearer and slower; agreement 1 only with everything."""
    lost = (1 - choice.keep_ratio) ** 4 * (0.9 + choice.rectify_interval / 640)
    return Measured(1 - lost, 1 + 4 * choice.keep_ratio + 16 / choice.rectify_interval)


def everything(grid: Grid) -> list[Choice]:
    return [Choice(*each) for each in itertools.product(grid.keep_ratios, grid.intervals, [0])]


@pytest.mark.parametrize("agreement", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
def test_the_fastest_that_agrees_enough(agreement: float) -> None:
    best, trials = search(measure, Target(agreement=agreement), GRID, max_trials=50)
    assert best is not None
    good = [c for c in everything(GRID) if measure(c).agreement >= agreement]
    assert best.choice == min(good, key=lambda c: measure(c).ms_per_token)
    assert len(trials) < len(everything(GRID))


@pytest.mark.parametrize("ms", [1.35, 1.6, 2.0, 2.5, 3.0, 4.0, 5.6, 100.0])
def test_the_nearest_that_is_fast_enough(ms: float) -> None:
    best, _ = search(measure, Target(ms_per_token=ms), GRID, max_trials=50)
    assert best is not None
    good = [c for c in everything(GRID) if measure(c).ms_per_token <= ms]
    nearest = max(measure(c).agreement for c in good)
    assert best.measured.agreement == nearest


def test_nothing_meets_the_target() -> None:
    best, trials = search(measure, Target(ms_per_token=0.5), GRID, max_trials=50)
    assert best is None
    assert trials


@pytest.mark.parametrize("most", [1, 2, 5])
def test_trials_are_bounded_and_never_repeated(most: int) -> None:
    seen: list[Choice] = []

    def counted(choice: Choice) -> Measured:
        seen.append(choice)
        return measure(choice)

    best, trials = search(counted, Target(agreement=0.5), GRID, max_trials=most)
    assert [trial.choice for trial in trials] == seen
    assert len(seen) == len(set(seen)) == most
    assert best is None or best.measured.agreement >= 0.5


def test_short_sequences_become_dense_where_that_helps() -> None:
    """Half of the sequences are short: dense is faster for them, and nearer."""

    def short(choice: Choice) -> Measured:
        plain = measure(choice)
        if choice.dense_below < 1000:
            return plain
        return Measured((1 + plain.agreement) / 2, 0.8 * plain.ms_per_token)

    grid = Grid(GRID.keep_ratios, GRID.intervals, (0, 1000), 32)
    for target in (Target(agreement=0.7), Target(ms_per_token=2.0)):
        best, _ = search(short, target, grid, max_trials=50)
        assert best is not None
        assert best.choice.dense_below == 1000
