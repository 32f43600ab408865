"""Forced logits and drift, against the executor driven by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.driver import OneSequence
from trt_resa.reference.compare import assert_close
from trt_resa.runtime.quality.drift import DriftMeter, TokenDrift
from trt_resa.runtime.quality.forcing import ForcedText, ForcingLLM

PROMPT, FORCED, INTERVAL = 150, 37, 8


@pytest.fixture(scope="module")
def llm(tiny_engine: Path) -> Iterator[ForcingLLM]:
    with ForcingLLM(tiny_engine, device="cpu", kv_cache_config={"max_tokens": 2048}) as model:
        yield model


@pytest.fixture(scope="module")
def texts() -> list[ForcedText]:
    random = torch.Generator().manual_seed(3)
    return [
        ForcedText(torch.randint(0, 256, (PROMPT + FORCED,), generator=random).tolist(), PROMPT)
        for _ in range(3)
    ]


def forced(llm: ForcingLLM, text: ForcedText, mode: str) -> tuple[torch.Tensor, list[int]]:
    """Logits [forced, vocab] and positions, the last that came for each index."""
    logits, positions = torch.full((FORCED, llm.model_config.vocab_size), torch.nan), [-1] * FORCED

    def observe(index: int, position: int, row: torch.Tensor) -> None:
        logits[index], positions[index] = row, position

    llm.force([text], [observe], {"rectify_mode": mode})
    return logits, positions


def test_forced_logits_are_the_loops(llm: ForcingLLM, texts: list[ForcedText]) -> None:
    """The design's fused loop, driven without session, schedule or sampler."""
    tokens = list(texts[0].tokens)
    logits, positions = forced(llm, texts[0], "fused")
    sequence = OneSequence(llm._executor, 16, PROMPT + FORCED)
    expected = [sequence.dense(tokens, 0, PROMPT)[-1]]
    wanted, exact = [0], PROMPT
    for place in range(PROMPT, PROMPT + FORCED - 1):
        if place + 1 - exact == INTERVAL:
            expected.append(sequence.dense(tokens, exact, place + 1)[-1])
            exact = place + 1
            wanted.append(0)
        else:
            expected.append(sequence.sparse(tokens, place))
            wanted.append(place + 1 - exact)
    assert positions == wanted
    assert_close(logits, torch.stack(expected), atol=1e-3, rtol=1e-4, what="forced logits")


def test_dense_does_not_drift_from_itself(llm: ForcingLLM, texts: list[ForcedText]) -> None:
    meter = DriftMeter(llm, texts)
    for mode in ("dense", "verify"):
        drift = TokenDrift.joined(meter.measure({"rectify_mode": mode}))
        assert drift.kl.max() < 1e-6, mode
        assert drift.agreement == 1, mode
        assert set(drift.position) == {0}, mode


def test_the_token_of_a_dense_pass_is_dense(llm: ForcingLLM, texts: list[ForcedText]) -> None:
    """fused: KL is 0 where a window begins and nowhere else; separate and none: nowhere."""
    meter = DriftMeter(llm, texts)
    by_mode = {
        mode: TokenDrift.joined(meter.measure({"rectify_mode": mode}))
        for mode in ("fused", "separate", "none")
    }
    by_position = by_mode["fused"].kl_by_position()
    assert sorted(by_position) == list(range(INTERVAL))
    assert by_position[0] < 1e-6
    assert min(by_position[p] for p in range(1, INTERVAL)) > 1e-3
    # Of the other modes only the prompt's pass gives a token.
    assert sorted(by_mode["separate"].kl_by_position()) == list(range(INTERVAL + 1))
    assert sorted(by_mode["none"].kl_by_position()) == list(range(FORCED))
    for mode in ("separate", "none"):
        assert (by_mode[mode].position == 0).sum() == len(texts), mode
        assert by_mode[mode].mean_kl > by_mode["fused"].mean_kl, mode
        assert by_mode[mode].agreement < 1, mode


def test_figures_of_a_drift_by_hand() -> None:
    drift = TokenDrift.empty(4)
    drift.kl[:] = [0.0, 0.1, 0.3, 0.4]
    drift.agrees[:] = [1, 1, 0, 1]
    drift.nll[:] = torch.tensor([2.0, 4.0, 8.0, 2.0]).log().numpy()
    drift.position[:] = [0, 1, 2, 1]
    assert drift.agreement == 0.75
    assert drift.mean_kl == pytest.approx(0.2)
    assert drift.perplexity == pytest.approx(128**0.25)
    assert drift.kl_by_position() == pytest.approx({0: 0.0, 1: 0.25, 2: 0.3})
    assert drift.kl_by_piece() == pytest.approx([0.0, 0.1, 0.3, 0.4])
    twice = TokenDrift.joined([drift, drift])
    assert twice.kl_by_piece() == pytest.approx([0.0, 0.1, 0.3, 0.4])
    assert len(twice.kl) == 8


def test_kl_of_two_known_distributions(llm: ForcingLLM, texts: list[ForcedText]) -> None:
    """The meter's KL, computed again by torch from the two modes' logits."""
    dense, _ = forced(llm, texts[0], "dense")
    none, _ = forced(llm, texts[0], "none")
    expected = torch.nn.functional.kl_div(
        none.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    drift = DriftMeter(llm, texts[:1]).measure({"rectify_mode": "none"})[0]
    assert_close(torch.from_numpy(drift.kl).float(), expected, atol=1e-4, rtol=1e-3, what="KL")
    words = torch.tensor(texts[0].forced)[:, None]
    nll = -none.log_softmax(-1).gather(1, words)[:, 0]
    assert_close(torch.from_numpy(drift.nll).float(), nll, atol=1e-3, rtol=1e-3, what="nll")
