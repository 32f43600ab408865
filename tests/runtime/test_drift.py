"""The drift meter: against the same comparison done by hand, and without influence on tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div, log_softmax

from tests.driver import OneSequence
from trt_resa import LLM, SamplingParams
from trt_resa.runtime.drift import DriftMeter, divergence, sampled_steps
from trt_resa.runtime.stats import SequenceStats

PROMPT, INTERVAL = list(b"gamma and something more: " + b"gamma " * 20), 8


@pytest.fixture(scope="module")
def llm(tiny_engine: Path) -> Iterator[LLM]:
    with LLM(
        tiny_engine,
        device="cpu",
        max_seq_len=512,
        sparse_attention_config={"min_blocks": 6, "keep_ratio": 0.5},
        # The comparison by hand writes to the pool, so nothing in it may be kept.
        kv_cache_config={"enable_block_reuse": False},
    ) as model:
        yield model


def run(llm: LLM, mode: str, tokens: int, **changes: object) -> tuple[list[int], SequenceStats]:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    sparse = {"rectify_mode": mode, **changes}
    output = llm.generate(PROMPT, params, sparse_attention_config=sparse).outputs[0]
    return output.token_ids, output.stats


def by_hand(llm: LLM, mode: str, tokens: list[int], windows: int) -> tuple[int, float]:
    """Agreement and KL of every sparse step of the first windows, driven without the session."""
    sequence = OneSequence(llm._executor, 16, 400)
    text, start = [*PROMPT, *tokens], len(PROMPT)
    sequence.dense(text, 0, start)
    agreed, kl = 0, 0.0
    for _ in range(windows):
        steps = INTERVAL if mode == "separate" else INTERVAL - 1
        sparse = torch.stack([sequence.sparse(text, start + row) for row in range(steps)])
        dense = sequence.dense(text, start, start + INTERVAL)[:steps]
        agreed += int((dense.argmax(-1) == sparse.argmax(-1)).sum())
        logs = [log_softmax(x.double(), -1) for x in (sparse, dense)]
        kl += float(kl_div(*logs, reduction="sum", log_target=True))
        start += INTERVAL
    return agreed, kl


@pytest.mark.parametrize("mode", ["fused", "separate"])
def test_it_reports_what_a_comparison_by_hand_gives(llm: LLM, mode: str) -> None:
    windows = 6
    tokens, stats = run(llm, mode, 1 + INTERVAL * windows + (mode == "separate"), drift_sample=8)
    assert stats.dense_passes == windows
    agreed, kl = by_hand(llm, mode, tokens, windows)
    assert stats.drift_rows == windows * (INTERVAL if mode == "separate" else INTERVAL - 1)
    assert stats.drift_agreed == agreed
    assert stats.drift_kl == pytest.approx(kl, rel=1e-3)
    assert 0 < agreed < stats.drift_rows, "nothing to tell apart"
    assert kl > 0.1


def test_verify_measures_the_drafts_that_its_pass_checks(llm: LLM) -> None:
    tokens, stats = run(llm, "verify", 60, drift_sample=8)
    assert tokens == run(llm, "dense", 60)[0]
    # Drafts equal dense's likeliest token where the texts before them do, and only there are they
    # accepted; drafts behind a rejected one are compared too.
    assert stats.drift_rows == stats.drafts
    assert stats.drafts_accepted <= stats.drift_agreed < stats.drift_rows


@pytest.mark.parametrize("mode", ["fused", "separate", "verify"])
def test_it_changes_no_token(llm: LLM, mode: str) -> None:
    results = [run(llm, mode, 70, drift_sample=sample) for sample in (0, 1, 3)]
    assert results[0][0] == results[1][0] == results[2][0]
    rows = [stats.drift_rows for _, stats in results]
    passes = results[0][1].dense_passes
    assert rows[0] == 0
    assert 0 < rows[1] <= passes
    assert rows[1] < rows[2] <= 3 * passes
    if mode != "verify":  # its windows can end before the sampled step
        assert rows == [0, passes, 3 * passes]


@pytest.mark.parametrize("mode", ["none", "dense"])
def test_modes_without_rectification_measure_nothing(llm: LLM, mode: str) -> None:
    assert run(llm, mode, 40, drift_sample=8)[1].drift_rows == 0


def test_steps_that_select_everything_do_not_drift(llm: LLM) -> None:
    _, stats = run(llm, "fused", 80, drift_sample=8, keep_ratio=1.0)
    assert stats.drift_agreed == stats.drift_rows > 60
    assert stats.drift_kl < 1e-4


def test_nothing_is_measured_below_dense_below(llm: LLM) -> None:
    length = len(PROMPT) + 40
    _, stats = run(llm, "fused", 41 + 2 * INTERVAL, drift_sample=8, dense_below=length)
    assert stats.drift_rows == 2 * (INTERVAL - 1)


@given(st.integers(0, 1 << 40), st.integers(0, 127), st.integers(0, 8))
def test_the_sample_is_ascending_and_inside_the_window(window: int, steps: int, count: int) -> None:
    sample = sampled_steps(window, steps, count)
    assert len(sample) == min(steps, count)
    assert list(sample) == sorted(set(sample))
    assert all(0 <= step < steps for step in sample)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_step_is_sampled_equally_often(count: int) -> None:
    seen = Counter(step for window in range(3100) for step in sampled_steps(window, 31, count))
    assert set(seen) == set(range(31))
    assert max(seen.values()) < 1.15 * min(seen.values())


def test_the_meter_samples_another_step_in_every_window() -> None:
    meter, stats = DriftMeter(1), SequenceStats()
    sampled = []
    for window in range(20):
        steps = range(10 * window, 10 * window + 7)
        for position in steps:
            if meter.wants(position, steps.start, len(steps)):
                meter.keep(position, torch.arange(4.0))
        assert len(meter.positions) == 1
        sampled.append(meter.positions[0] - steps.start)
        dense = {position: torch.arange(4.0) for position in meter.positions}
        meter.end_window()
        assert not meter.positions
        meter.compare(dense, stats)
    assert sampled == [sampled_steps(window, 7, 1)[0] for window in range(20)]
    assert len(set(sampled)) == 7
    assert (stats.drift_rows, stats.drift_agreed) == (20, 20)


def test_divergence() -> None:
    dense, sparse = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0])
    p = torch.sigmoid(torch.tensor(1.0)).item()
    expected = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert divergence(dense, sparse) == pytest.approx(expected, rel=1e-5)
    assert divergence(dense, dense + 7) == 0
