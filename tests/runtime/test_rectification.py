"""After a dense pass the cache is a dense prefill's; every summary is its block's min and max."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.driver import OneSequence
from trt_resa import LLM
from trt_resa.reference.compare import assert_close

BLOCK, LONGEST = 16, 160


@pytest.fixture(scope="module")
def llm(tiny_engine: Path) -> Iterator[LLM]:
    sparse = {"min_blocks": 2, "keep_ratio": 0.1}
    cache = {"max_tokens": 2 * LONGEST}
    with LLM(
        tiny_engine, device="cpu", sparse_attention_config=sparse, kv_cache_config=cache
    ) as model:
        yield model


def poison(llm: LLM) -> None:
    """Unwritten places hold NaN, which must reach nothing."""
    for buffer in (*llm._executor.kv, *llm._executor.summary):
        buffer.fill_(torch.nan)


def cached(llm: LLM, sequence: OneSequence, length: int) -> list[torch.Tensor]:
    """Per layer, the first ``length`` keys and values, [2, kv_heads, length, head_dim]."""
    return [
        kv[sequence.blocks].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
        for kv in llm._executor.kv
    ]


def check_summaries(llm: LLM, sequence: OneSequence, length: int) -> None:
    for layer, kv in enumerate(llm._executor.kv):
        for index in range(-(-length // BLOCK)):
            block = sequence.blocks[index]
            keys = kv[block, 0, :, : min(BLOCK, length - index * BLOCK)]
            summary = llm._executor.summary[layer][block]
            assert torch.equal(summary[:, 0], keys.amin(dim=1)), f"layer {layer} block {index}"
            assert torch.equal(summary[:, 1], keys.amax(dim=1)), f"layer {layer} block {index}"


@st.composite
def schedules(draw: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """A text and windows: (sparse steps taken, tokens dropped before the dense pass)."""
    seed = draw(st.integers(0, 1 << 30))
    text = torch.randint(0, 256, (LONGEST,), generator=torch.Generator().manual_seed(seed))
    windows = draw(
        st.lists(st.tuples(st.integers(1, 20), st.integers(0, 19)), min_size=1, max_size=5)
    )
    return text.tolist(), windows


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules(), st.integers(20, 60))
def test_a_dense_pass_repairs_the_cache(
    llm: LLM, schedule: tuple[list[int], list[tuple[int, int]]], prompt: int
) -> None:
    text, windows = schedule
    poison(llm)
    sequence = OneSequence(llm._executor, BLOCK, LONGEST)
    sequence.dense(text, 0, prompt)
    exact = prompt
    for steps, dropped in windows:
        stop = min(exact + steps, LONGEST)
        for position in range(exact, stop):
            # Other tokens than the dense pass will see: their keys must leave no trace.
            wrong = [(token + 1) % 256 for token in text]
            assert torch.isfinite(sequence.sparse(wrong, position)).all()
        check_summaries(llm, sequence, stop)
        stop = max(exact + 1, stop - dropped)
        if stop > LONGEST:
            break
        sequence.dense(text, exact, stop)
        check_summaries(llm, sequence, stop)
        exact = stop
    repaired = cached(llm, sequence, exact)
    poison(llm)
    sequence.dense(text, 0, exact)
    for layer, (got, expected) in enumerate(
        zip(repaired, cached(llm, sequence, exact), strict=True)
    ):
        assert_close(got, expected, atol=1e-5, rtol=1e-5, what=f"layer {layer}")


def test_sparse_steps_alone_leave_another_cache(llm: LLM) -> None:
    """The comparison above can fail: without the dense pass it does."""
    text = list(range(120))
    sequence = OneSequence(llm._executor, BLOCK, LONGEST)
    sequence.dense(text, 0, 100)
    for position in range(100, 120):
        sequence.sparse(text, position)
    sparse = cached(llm, sequence, 120)
    sequence.dense(text, 0, 120)
    with pytest.raises(AssertionError, match="worst element"):
        # The first layer's keys depend on the tokens alone; the second's on attention.
        assert_close(sparse[1], cached(llm, sequence, 120)[1], atol=1e-5, rtol=1e-5, what="layer 1")


def test_selecting_everything_gives_the_bits_of_a_dense_pass(tiny_engine: Path) -> None:
    for sparse in ({"keep_ratio": 1.0}, {"dense_below": 200, "keep_ratio": 0.1}):
        with LLM(tiny_engine, device="cpu", sparse_attention_config=sparse) as llm:
            text = list(range(150))
            sequence = OneSequence(llm._executor, BLOCK, LONGEST)
            sequence.dense(text, 0, 149)
            stepped = sequence.sparse(text, 149)
            assert torch.equal(stepped, sequence.dense(text, 149, 150)[0])
