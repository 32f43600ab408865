"""Mode verify gives what the dense model gives, whatever the request and the windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from scipy.stats import chisquare

from tests.runtime.markov_executor import MarkovExecutor
from trt_resa import LLM, SamplingParams
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.session import Session
from trt_resa.runtime.stats import total

WINDOWS = pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed"])


@pytest.fixture(scope="module")
def llm(tiny_engine: Path) -> Iterator[LLM]:
    """Drafts from half of the blocks, so that some are right and some are wrong."""
    with LLM(
        tiny_engine,
        device="cpu",
        max_batch_size=4,
        max_seq_len=512,
        sparse_attention_config={"min_blocks": 6, "keep_ratio": 0.5},
    ) as model:
        yield model


def requests(random: Random, count: int, likely: str) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of text, and greedy requests of every kind; ``likely`` characters are in stops."""
    made = []
    for _ in range(count):
        word = random.choice(["alpha ", "beta ", "gamma ", "delta "])
        prompt = f"{word} and more: {word * random.randint(10, 40)}".encode()
        params = SamplingParams(
            max_tokens=random.randint(1, 50),
            ignore_eos=random.random() < 0.5,
            stop=tuple(random.sample(likely, random.choice((0, 0, 1)))),
            stop_token_ids=tuple(random.sample(range(256), random.choice((0, 8)))),
            bad_token_ids=tuple(random.sample(range(256), random.choice((0, 20)))),
            repetition_penalty=random.choice((1.0, 1.3)),
            presence_penalty=random.choice((0.0, 0.7)),
            frequency_penalty=random.choice((0.0, 0.4)),
            logprobs=random.choice((None, 0, 2)),
        )
        made.append((list(prompt), params))
    return made


@WINDOWS
@pytest.mark.parametrize("seed", range(3))
def test_greedy_requests_of_every_kind_in_a_batch(llm: LLM, seed: int, adaptive: bool) -> None:
    text = llm.generate("gamma " * 30, SamplingParams(max_tokens=200)).outputs[0].text
    made = requests(Random(seed), 24, "".join(sorted({c for c in text if c.isprintable()})))
    prompts, params = [p for p, _ in made], [p for _, p in made]
    dense = llm.generate(prompts, params, rectify_mode="dense")
    sparse = {"rectify_mode": "verify", "adaptive_window": adaptive}
    results = llm.generate(prompts, params, sparse_attention_config=sparse)
    for expected, result in zip(dense, results, strict=True):
        check(expected.outputs[0], result.outputs[0])
    reasons = {result.outputs[0].finish_reason for result in results}
    assert reasons == {"stop", "length"}
    stats = total(result.outputs[0].stats for result in results)
    assert 0 < stats.drafts_accepted < stats.drafts
    assert stats.verifications == stats.dense_passes


def check(dense: CompletionOutput, verify: CompletionOutput) -> None:
    assert verify.token_ids == dense.token_ids
    assert verify.text == dense.text
    assert verify.finish_reason == dense.finish_reason
    assert verify.stop_reason == dense.stop_reason
    assert (verify.logprobs is None) == (dense.logprobs is None)
    for ours, theirs in zip(verify.logprobs or (), dense.logprobs or (), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_adaptive_windows_waste_fewer_drafts(llm: LLM) -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    results = {
        adaptive: llm.generate(
            "gamma " * 30,
            params,
            sparse_attention_config={"rectify_mode": "verify", "adaptive_window": adaptive},
        ).outputs[0]
        for adaptive in (True, False)
    }
    assert results[True].token_ids == results[False].token_ids
    assert results[True].stats.sparse_steps < results[False].stats.sparse_steps
    assert results[True].stats.verifications > results[False].stats.verifications


@pytest.mark.parametrize("adaptive", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sampling_is_distributed_as_dense_over_many_windows(adaptive: bool) -> None:
    """Tokens 7 and 8 of 2,500 samples against the powers of the dense model's matrix."""
    vocab, seeds, length = 4, 2500, 9
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(vocab, vocab, generator=generator)
    sparse = dense + 0.7 * torch.randn(vocab, vocab, generator=generator)
    config = SparseAttentionConfig(
        rectify_mode="verify", rectify_interval=8, adaptive_window=adaptive, dense_below=0
    )
    limits = Limits(32, 64, 64, 256, 32)
    session = Session(
        MarkovExecutor(32, dense, sparse), limits, config, KvCacheConfig(), SchedulerConfig()
    )
    sequences = [
        Sequence(
            seed,
            0,
            [1],
            SamplingParams(max_tokens=length, temperature=1.0, seed=seed, ignore_eos=True),
            config,
            64,
            (),
            None,
        )
        for seed in range(seeds)
    ]
    for sequence in sequences:
        session.submit(sequence)
    while not session.idle:
        session.step()
    step = torch.softmax(dense.double(), -1)
    before = torch.linalg.matrix_power(step, 7)[1]
    expected = (before[:, None] * step).flatten() * seeds
    counts = torch.zeros(vocab, vocab, dtype=torch.float64)
    for sequence in sequences:
        counts[sequence.output.token_ids[6], sequence.output.token_ids[7]] += 1
    assert chisquare(counts.flatten(), expected, sum_check=False).pvalue > 0.01
    stats = total(sequence.output.stats for sequence in sequences)
    assert stats.verifications > 2 * seeds or not adaptive
    assert 0.3 * stats.drafts < stats.drafts_accepted < 0.9 * stats.drafts
    # Drafts that nobody checked would be distributed otherwise: the test can fail.
    wrong = torch.softmax(sparse.double(), -1)
    mixed = (torch.linalg.matrix_power(wrong, 7)[1][:, None] * wrong).flatten() * seeds
    assert chisquare(counts.flatten(), mixed, sum_check=False).pvalue < 1e-6
