"""The size of a verifying window: best for its acceptance, bounded, and found by trying."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_resa.contract import Phase
from trt_resa.runtime.acceptance import PASS_COST, SMALLEST, Acceptance, best_window
from trt_resa.runtime.schedule import Window

RATES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0)


def cost(rate: float, size: int) -> float:
    """Time per token in sparse steps, from the probability of every outcome of a window."""
    drafts = size - 1
    outcomes = [(rate**n * (1 - rate), n + 1) for n in range(drafts)] + [(rate**drafts, size)]
    assert sum(p for p, _ in outcomes) == pytest.approx(1)
    return (drafts + PASS_COST) / sum(p * tokens for p, tokens in outcomes)


@pytest.mark.parametrize("rate", RATES)
def test_the_best_window_costs_least(rate: float) -> None:
    best = best_window(rate, 64)
    assert cost(rate, best) == pytest.approx(min(cost(rate, n) for n in range(SMALLEST, 65)))


def test_more_acceptance_means_larger_windows_up_to_the_most() -> None:
    sizes = [best_window(rate, 32) for rate in RATES]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (SMALLEST, 32)
    assert [best_window(rate, 1) for rate in RATES] == [1] * len(RATES)


@pytest.mark.parametrize("rate", RATES)
def test_trying_comes_close_to_knowing_the_rate(rate: float) -> None:
    """Over 2,000 windows within a tenth of the least cost per token."""
    random, acceptance = Random(7), Acceptance(32)
    time = tokens = 0.0
    for _ in range(2000):
        drafts = acceptance.window - 1
        accepted = next((n for n in range(drafts) if random.random() >= rate), drafts)
        acceptance.count(drafts, accepted)
        time += drafts + PASS_COST
        tokens += accepted + 1
    assert time / tokens < 1.1 * cost(rate, best_window(rate, 32))


def test_it_grows_and_shrinks() -> None:
    acceptance = Acceptance(32)
    first = acceptance.window
    for _ in range(20):
        acceptance.count(acceptance.window - 1, acceptance.window - 1)
    assert acceptance.window == 32 > first
    sizes = []
    for _ in range(20):
        acceptance.count(acceptance.window - 1, 0)
        sizes.append(acceptance.window)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] <= 8
    assert sizes[-1] == SMALLEST < first
    for _ in range(30):
        acceptance.count(acceptance.window - 1, acceptance.window - 1)
    assert acceptance.window == 32


@given(st.integers(1, 128), st.lists(st.floats(0, 1), max_size=60))
def test_it_stays_within_its_bounds(most: int, shares: list[float]) -> None:
    acceptance = Acceptance(most)
    for share in shares:
        drafts = acceptance.window - 1
        acceptance.count(drafts, int(share * drafts))
        assert min(SMALLEST, most) <= acceptance.window <= most


def test_a_window_is_verified_at_its_present_size() -> None:
    window = Window("verify", 32, 5, 5, acceptance=Acceptance(32))
    window.advance(window.next_action())
    rows = []
    for _ in range(400):
        action = window.next_action()
        if action.phase is Phase.DENSE:
            assert action.num_rows == window.size
            rows.append(action.num_rows)
        accepted = action.num_rows - 1 if len(rows) > 12 else 0
        window.advance(action, accepted)
    assert min(rows) == SMALLEST
    assert rows[-1] == 32
