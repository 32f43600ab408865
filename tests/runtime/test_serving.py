"""Many requests on the torch executor: a pool too small for them, shared prefixes, own settings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from trt_resa import LLM, SamplingParams
from trt_resa.contract import Phase, Step
from trt_resa.errors import ConfigError, RequestError
from trt_resa.runtime.executors.base import SubmittedForward
from trt_resa.runtime.outputs import RequestOutput

MODES = ("dense", "none", "fused", "separate", "verify")
STEM = [i * 7 % 256 for i in range(70)]
PROMPTS = [[*STEM, *range(n, n + 9)] for n in range(0, 60, 10)]


def open_llm(engine: Path, **changes: Any) -> LLM:
    sparse = {"min_blocks": 2, "keep_ratio": 0.1}
    return LLM(engine, device="cpu", max_seq_len=256, sparse_attention_config=sparse, **changes)


def params(tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **changes)


def tokens_of(results: list[RequestOutput]) -> list[list[int]]:
    return [result.outputs[0].token_ids for result in results]


@pytest.fixture(scope="module", params=MODES)
def alone(request: pytest.FixtureRequest, tiny_engine: Path) -> tuple[str, list[list[int]]]:
    """Each prompt in a pool of its own, nothing kept from the one before."""
    with open_llm(
        tiny_engine, max_batch_size=1, kv_cache_config={"enable_block_reuse": False}
    ) as llm:
        results = [llm.generate(p, params(70), rectify_mode=request.param) for p in PROMPTS]
        assert llm.metrics().kv_blocks_reused == llm.metrics().preemptions == 0
    return request.param, tokens_of(results)


@pytest.mark.parametrize("reuse", [False, True])
def test_preemption_and_reuse_change_no_token(
    tiny_engine: Path, alone: tuple[str, list[list[int]]], reuse: bool
) -> None:
    """149 tokens are 10 blocks; 6 requests share 22."""
    mode, expected = alone
    cache = {"max_tokens": 22 * 16, "enable_block_reuse": reuse}
    with open_llm(tiny_engine, max_batch_size=6, kv_cache_config=cache) as llm:
        results = llm.generate(PROMPTS, params(70), rectify_mode=mode)
        metrics = llm.metrics()
    assert tokens_of(results) == expected
    assert metrics.preemptions > 0
    assert (metrics.kv_blocks_reused > 0) == reuse
    assert metrics.generated_tokens == 6 * 70
    assert metrics.prompt_tokens == sum(map(len, PROMPTS))


def test_a_known_prefix_is_not_computed_again(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last token of the prompt may come from the cache, in whole blocks."""
    with open_llm(tiny_engine) as llm:
        rows: list[int] = []
        submit = llm._executor.submit

        def counted(step: Step) -> SubmittedForward:
            rows.append(step.num_tokens if step.phase is Phase.DENSE else 0)
            return submit(step)

        monkeypatch.setattr(llm._executor, "submit", counted)
        prompt = STEM[:64]
        first = llm.generate(prompt, params(4), rectify_mode="none")
        assert rows == [64, 0, 0, 0]
        rows.clear()
        again = llm.generate(prompt, params(4), rectify_mode="none")
        assert rows == [16, 0, 0, 0]
        assert again.outputs[0].token_ids == first.outputs[0].token_ids
        # What sparse steps wrote is not kept: the answer of mode none has to be computed.
        rows.clear()
        chat = prompt + first.outputs[0].token_ids + list(range(20))
        llm.generate(chat, params(1), rectify_mode="none")
        assert rows == [len(chat) - 64]
        # What dense passes wrote is.
        rows.clear()
        answer = llm.generate(prompt, params(40), rectify_mode="fused").outputs[0].token_ids
        rows.clear()
        llm.generate(prompt + answer, params(1), rectify_mode="fused")
        assert rows == [104 - 96]


def test_requests_with_settings_of_their_own(tiny_engine: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"keep_ratio": 1.0},
        {"rectify_mode": "dense"},
        {"min_blocks": 4, "rectify_mode": "none"},
        {"dense_below": 100, "rectify_mode": "none"},
        {"rectify_interval": 3},
    ]
    prompt = PROMPTS[0]
    with open_llm(tiny_engine, max_batch_size=6) as llm:
        handles = [
            llm.generate_async(prompt, params(60), sparse_attention_config=change)
            for change in changes
        ]
        together = tokens_of([handle.result(60) for handle in handles])
        singly = [
            llm.generate(prompt, params(60), sparse_attention_config=change) for change in changes
        ]
        assert together == tokens_of(singly)
        assert len({tuple(tokens) for tokens in together}) > 3
        everything = singly[1].outputs[0].stats
        assert everything.blocks_attended == everything.blocks_cached
        assert singly[2].outputs[0].stats.sparse_steps == 0
    for change, tokens in zip(changes, together, strict=True):
        own = {"min_blocks": 2, "keep_ratio": 0.1, **change}
        with LLM(tiny_engine, device="cpu", max_seq_len=256, sparse_attention_config=own) as llm:
            assert llm.generate(prompt, params(60)).outputs[0].token_ids == tokens


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"keep_ratio": 2}, ConfigError, "keep_ratio = 2"),
        ({"typo": 2}, ConfigError, "unknown key 'typo'; allowed keys: algorithm"),
        ({"rectify_mode": "sometimes"}, ConfigError, "rectify_mode = 'sometimes'"),
        ({"block_size": 32}, RequestError, "block_size 32 differs from the engine's 16"),
        ({"rectify_interval": 64}, RequestError, "rectify_interval 64 exceeds 32"),
    ],
)
def test_settings_that_a_request_cannot_have(
    tiny_engine: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with open_llm(tiny_engine) as llm:
        with pytest.raises(kind, match=message):
            llm.generate(PROMPTS[0], params(2), sparse_attention_config=changes)
        assert llm.generate(PROMPTS[0], params(2)).finished


def test_a_long_prompt_leaves_room_between_the_tokens_of_others(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Step] = []
    rows = {"dense_rows_while_decoding": 40}
    with open_llm(tiny_engine, scheduler_config=rows) as llm:
        submit = llm._executor.submit

        def recorded(step: Step) -> SubmittedForward:
            steps.append(step)
            return submit(step)

        monkeypatch.setattr(llm._executor, "submit", recorded)
        first = llm.generate_async(STEM, params(60), streaming=True, rectify_mode="fused")
        pieces = iter(first)
        next(pieces)
        second = llm.generate_async(list(range(200)), params(2))
        assert second.result(60).finished
        assert [piece.finished for piece in pieces][-1]
    dense = [step for step in steps if step.phase is Phase.DENSE]
    assert dense[0].num_tokens == len(STEM)
    during = dense[1:]
    assert sum(step.num_tokens for step in during) >= 200
    assert max(step.num_tokens for step in during) == 40
    phases = [step.phase for step in steps]
    assert not any(a is b is Phase.DENSE for a, b in pairwise(phases[1:]))
