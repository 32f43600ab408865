"""The Python API as a user calls it: batches, streaming, stopping, sampling, bad requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from tests.checkpoints import tiny_checkpoint
from tests.conftest import build_torch_engine
from tests.driver import OneSequence
from trt_resa import LLM, SamplingParams, SparseAttentionConfig
from trt_resa.config import KvCacheConfig, RectifyMode
from trt_resa.errors import ConfigError, EngineError, RequestError
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.stats import total

MODES = ("dense", "none", "fused", "separate", "verify")
TEXTS = tuple(
    f"{word} and something more, so that the prompts differ in length: {word * n}"
    for n, word in enumerate(("alpha ", "beta ", "gamma ", "delta ", "epsilon "), start=1)
)


@pytest.fixture(scope="module")
def llm(tiny_engine: Path) -> Iterator[LLM]:
    with LLM(tiny_engine, device="cpu", max_batch_size=4, max_seq_len=512) as model:
        yield model


def greedy(tokens: int, **changes: object) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **changes)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_gives_what_each_request_gives_alone(llm: LLM, mode: str) -> None:
    """Five requests on four places, so one joins late; windows are staggered in the batch alone."""
    params = [greedy(40 + 10 * i) for i in range(5)]
    batch = llm.generate(TEXTS, params, rectify_mode=mode)
    for text, param, together in zip(TEXTS, params, batch, strict=True):
        alone = llm.generate(text, param, rectify_mode=mode)
        assert alone.outputs[0].token_ids == together.outputs[0].token_ids
        assert len(alone.outputs[0].token_ids) == param.max_tokens
        assert alone.outputs[0].finish_reason == "length"


def test_everything_is_given_back(llm: LLM) -> None:
    llm.generate(TEXTS, greedy(20))
    assert llm._session.idle
    assert llm._session.free_blocks == llm._session.pool_size


@pytest.mark.parametrize("chunk", [7, 64])
def test_chunked_prefill_changes_nothing(llm: LLM, tiny_engine: Path, chunk: int) -> None:
    expected = llm.generate(TEXTS[3], greedy(20)).outputs[0].token_ids
    with LLM(
        tiny_engine,
        device="cpu",
        max_batch_size=1,
        max_num_tokens=chunk,
        sparse_attention_config={"rectify_interval": min(8, chunk)},
    ) as small:
        got = small.generate(TEXTS[3], greedy(20)).outputs[0].token_ids
    assert got[: min(8, chunk)] == expected[: min(8, chunk)]
    if chunk > 8:
        assert got == expected


@pytest.mark.parametrize("mode", ["fused", "verify"])
def test_streamed_pieces_make_up_the_whole(llm: LLM, mode: str) -> None:
    whole = llm.generate(TEXTS[0], greedy(50), rectify_mode=mode).outputs[0]
    pieces = list(llm.generate_async(TEXTS[0], greedy(50), streaming=True, rectify_mode=mode))
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 3
    assert "".join(piece.outputs[0].text_diff for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.outputs[0].token_ids_diff] == whole.token_ids


def test_asyncio(llm: LLM) -> None:
    async def both() -> tuple[list[int], list[int]]:
        awaited, streamed = llm.generate_async(TEXTS[1], greedy(12)), []
        async for output in llm.generate_async(TEXTS[1], greedy(12), streaming=True):
            streamed += output.outputs[0].token_ids_diff
        return (await awaited).outputs[0].token_ids, streamed

    awaited, streamed = asyncio.run(both())
    assert awaited == streamed
    assert len(awaited) == 12


def test_cancel_frees_the_blocks_and_spares_the_others(llm: LLM) -> None:
    expected = llm.generate(TEXTS[2], greedy(60)).outputs[0].token_ids
    victim = llm.generate_async(TEXTS[0], greedy(400), streaming=True)
    other = llm.generate_async(TEXTS[2], greedy(60))
    next(iter(victim))
    victim.cancel()
    last = victim.result(timeout=30)
    assert last.outputs[0].finish_reason == "cancelled"
    assert len(last.outputs[0].token_ids) < 400
    assert other.result(timeout=30).outputs[0].token_ids == expected
    assert llm._session.free_blocks == llm._session.pool_size
    victim.cancel()


def test_result_times_out_and_the_request_goes_on(llm: LLM) -> None:
    handle = llm.generate_async(TEXTS[0], greedy(100))
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.001)
    assert len(handle.result(timeout=60).outputs[0].token_ids) == 100


@pytest.mark.parametrize("mode", MODES)
def test_stopping(llm: LLM, mode: str) -> None:
    free = llm.generate(TEXTS[0], greedy(60), rectify_mode="dense").outputs[0]
    if mode in ("none", "fused", "separate"):
        free = llm.generate(TEXTS[0], greedy(60), rectify_mode=mode).outputs[0]
    token = free.token_ids[25]
    first = free.token_ids.index(token)
    stopped = llm.generate(TEXTS[0], greedy(60, stop_token_ids=(token,)), rectify_mode=mode)
    output = stopped.outputs[0]
    assert output.token_ids == free.token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", token)

    ended = llm.generate(
        TEXTS[0], SamplingParams(max_tokens=60, end_id=token), rectify_mode=mode
    ).outputs[0]
    assert ended.token_ids == output.token_ids
    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)


@pytest.mark.parametrize("mode", MODES)
def test_bad_words_are_not_generated(llm: LLM, mode: str) -> None:
    free = llm.generate(TEXTS[0], greedy(40), rectify_mode=mode).outputs[0]
    single = free.token_ids[5]
    bad = SamplingParams(max_tokens=40, ignore_eos=True, bad_token_ids=(single,))
    output = llm.generate(TEXTS[0], bad, rectify_mode=mode).outputs[0]
    assert len(output.token_ids) == 40
    assert single not in output.token_ids


def test_a_stop_string_is_cut_from_the_text(tiny_engine: Path, llm: LLM) -> None:
    # A byte tokenizer and a random model rarely give text; any character that appears will do.
    text = llm.generate(TEXTS[4], greedy(120)).outputs[0].text
    place = next(i for i, letter in enumerate(text) if i > 3 and letter not in text[:i])
    output = llm.generate(TEXTS[4], greedy(120, stop=text[place])).outputs[0]
    assert output.text == text[:place]
    assert (output.finish_reason, output.stop_reason) == ("stop", text[place])


def test_the_sequence_ends_at_max_seq_len(llm: LLM) -> None:
    output = llm.generate(list(range(100)) * 5, greedy(400)).outputs[0]
    assert len(output.token_ids) == 12
    assert output.finish_reason == "length"


def test_completions_of_one_prompt(llm: LLM) -> None:
    params = greedy(10, temperature=1.0, n=3, seed=5)
    outputs = llm.generate(TEXTS[0], params).outputs
    assert [output.index for output in outputs] == [0, 1, 2]
    assert len({tuple(output.token_ids) for output in outputs}) > 1
    again = llm.generate(TEXTS[0], params).outputs
    assert [o.token_ids for o in again] == [o.token_ids for o in outputs]


def test_logprobs_are_the_dense_models(llm: LLM) -> None:
    tokens = [ord(letter) for letter in "hello, world"]
    dense = llm.generate(tokens, greedy(30, logprobs=3), rectify_mode="dense").outputs[0]
    verified = llm.generate(tokens, greedy(30, logprobs=3), rectify_mode="verify").outputs[0]
    assert dense.token_ids == verified.token_ids
    assert dense.logprobs is not None
    assert verified.logprobs is not None
    for a, b, token in zip(dense.logprobs, verified.logprobs, dense.token_ids, strict=True):
        assert max(a.values()) == a[token] <= 0
        assert len(a) == 3
        assert a == pytest.approx(b, abs=1e-4)
    assert dense.cumulative_logprob == pytest.approx(
        sum(entry[t] for entry, t in zip(dense.logprobs, dense.token_ids, strict=True))
    )


@pytest.mark.parametrize("mode", ["none", "fused", "separate", "verify"])
@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
def test_below_dense_below_everything_is_dense(
    llm: LLM, mode: RectifyMode, changes: dict[str, float]
) -> None:
    """Token for token, in a batch, without a dense pass after the prefill and without drafts."""
    params = greedy(60, **changes)
    dense = llm.generate(TEXTS[:3], params, rectify_mode="dense")
    sparse = {"rectify_mode": mode, "dense_below": 512}
    results = llm.generate(TEXTS[:3], params, sparse_attention_config=sparse)
    for result, expected in zip(results, dense, strict=True):
        output = result.outputs[0]
        assert output.token_ids == expected.outputs[0].token_ids
        stats = output.stats
        assert (stats.dense_passes, stats.sparse_steps, stats.drafts) == (0, 59, 0)


def test_windows_begin_where_dense_below_ends(llm: LLM) -> None:
    sparse = {"rectify_mode": "verify", "dense_below": 130}
    prompt = list(range(100))
    output = llm.generate(prompt, greedy(80), sparse_attention_config=sparse).outputs[0]
    dense = llm.generate(prompt, greedy(80), rectify_mode="dense").outputs[0]
    assert output.token_ids == dense.token_ids
    # Tokens 100 to 129 come from steps over at most 130 tokens; drafts begin behind them.
    assert output.stats.sparse_steps == 30 + output.stats.drafts
    assert output.stats.drafts > 20


def test_statistics_add_up(llm: LLM) -> None:
    stats = llm.generate(list(range(100)), greedy(33), rectify_mode="fused").outputs[0].stats
    # Windows of 8: 7 sparse steps and a dense pass of 8 rows give 8 tokens; one came from prefill.
    assert (stats.sparse_steps, stats.dense_passes, stats.dense_rows) == (28, 4, 32)
    assert stats.blocks_attended == 28 * 4
    cached = [-(-(100 + i) // 16) for i in range(1, 33)]
    assert stats.blocks_dense == sum(cached)
    assert stats.blocks_cached == sum(c for i, c in enumerate(cached, 1) if i % 8)
    verify = llm.generate(list(range(100)), greedy(33), rectify_mode="verify").outputs[0].stats
    assert 0 <= verify.drafts_accepted <= verify.drafts
    assert verify.drafts == verify.dense_rows - verify.dense_passes


def test_sampled_verify_is_distributed_as_dense_sampling(tmp_path: Path) -> None:
    """End to end on a vocabulary of 6: the second and third token, over many seeds, against the
    exact distribution from dense logits."""
    vocab, seeds, prompt = 6, 2000, [i * i % 6 for i in range(70)]
    checkpoint = tiny_checkpoint(
        tmp_path / "c", vocab_size=vocab, eos_token_id=None, initializer_range=0.05
    )
    for file in checkpoint.glob("*token*"):
        file.unlink()
    sparse = {"min_blocks": 1, "keep_ratio": 0.1, "rectify_interval": 3}
    engine = build_torch_engine(checkpoint, tmp_path / "e", **sparse)
    with LLM(engine, device="cpu", max_batch_size=32, max_seq_len=128) as llm:
        sequence = OneSequence(llm._executor, 16, 128)
        exact = torch.zeros(vocab, vocab)
        first = torch.softmax(sequence.dense(prompt, 0, len(prompt))[-1], -1)
        for a, b in product(range(vocab), repeat=2):
            after = sequence.dense([*prompt, a, b], len(prompt), len(prompt) + 2)
            second, third = torch.softmax(after, -1)
            exact[b] += first[a] * second[b] * third
        drafted = sequence.sparse([*prompt, 0], len(prompt))
        dense = sequence.dense([*prompt, 0], len(prompt), len(prompt) + 1)[0]
        difference = (torch.softmax(drafted, -1) - torch.softmax(dense, -1)).abs().sum()
        assert difference > 0.05, "drafts as good as dense would prove nothing"
        params = [
            SamplingParams(max_tokens=3, temperature=1.0, seed=seed, ignore_eos=True)
            for seed in range(seeds)
        ]
        results = llm.generate([prompt] * seeds, params, rectify_mode="verify")
    counts = torch.zeros(vocab, vocab)
    for result in results:
        _, b, c = result.outputs[0].token_ids
        counts[b, c] += 1
    expected = exact.flatten().double() / exact.sum().double() * seeds
    common = expected >= 5  # the test's own condition; rarer pairs are counted as one
    assert common.sum() > 20
    observed = counts.flatten().double()
    cells = [torch.cat((x[common], x[~common].sum()[None])) for x in (observed, expected)]
    assert chisquare(*cells, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([[]], {}, "the prompt is empty"),
        ([3, 999], {}, "token id 999 is outside the vocabulary 0..258"),
        ([-1], {}, "token id -1 is outside"),
        ([3, 0.5], {}, "token ids are integers, and one of these is not"),
        ([3], {"bad_token_ids": (999,)}, "token id 999 is outside the vocabulary 0..258"),
        ([1] * 512, {}, "the prompt has 512 tokens; this engine takes at most 511"),
        ("x" * 5000, {}, "the prompt has 5000 tokens"),
    ],
)
def test_bad_requests(llm: LLM, prompt: object, params: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompt, SamplingParams(**params))
    assert llm.generate(TEXTS[0], greedy(3)).finished


def test_one_bad_request_starts_none_of_a_batch(llm: LLM) -> None:
    with pytest.raises(RequestError, match="outside the vocabulary"):
        llm.generate([[1], [999]], greedy(3))
    assert llm._session.idle
    with pytest.raises(RequestError, match="2 prompts came with 1 sampling_params"):
        llm.generate([[1], [2]], [greedy(3)])


def test_a_request_that_the_cache_can_never_hold(tiny_engine: Path) -> None:
    with LLM(tiny_engine, device="cpu", kv_cache_config=KvCacheConfig(max_tokens=64)) as llm:
        with pytest.raises(RequestError, match="need 5 blocks of the KV cache, which has 4"):
            llm.generate([1] * 60, greedy(20))
        # Two requests that fit one after the other wait for one another.
        results = llm.generate([[1] * 30, [2] * 30], greedy(30))
        assert [len(r.outputs[0].token_ids) for r in results] == [30, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch_size": 33}, "max_batch_size 33 must be from 1 to the engine's 32"),
        ({"max_seq_len": 0}, "max_seq_len 0 must be"),
        ({"max_batch_size": 32, "max_num_tokens": 16}, "exceeds max_num_tokens 16"),
        ({"sparse_attention_config": {"keep_ratio": 0}}, "keep_ratio = 0"),
        ({"sparse_attention_config": {"typo": 0}}, "unknown key 'typo'"),
        ({"sparse_attention_config": SparseAttentionConfig(block_size=32)}, "fixed when it is"),
        ({"sparse_attention_config": {"rectify_interval": 64}}, "exceeds the 32 logit rows"),
        ({"kv_cache_config": {"max_tokens": 0}}, "max_tokens = 0"),
        ({"device": "tpu"}, "device 'tpu' is not one of"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of"),
        ({"executor": "tensorrt_rtx"}, "executor 'tensorrt_rtx' "),
    ],
)
def test_bad_arguments(tiny_engine: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(tiny_engine, **{"device": "cpu", **arguments})


def test_bad_engine_directories(tiny_engine: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        target = tmp_path / name
        target.mkdir()
        for file in tiny_engine.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        return target

    def fails(path: Path, message: str) -> None:
        with pytest.raises(EngineError, match=message) as error:
            LLM(path, device="cpu")
        assert "\n" not in str(error.value)

    fails(tmp_path / "absent", "is not an engine directory: it has no config.json")
    other = copy("other_version")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"version": 99}))
    fails(other, "has engine format version 99; this trt_resa reads version 2; build it again")
    (other / "config.json").write_text(json.dumps(config | {"extra": 1}))
    fails(other, "is damaged .*unknown key 'extra'")
    (other / "config.json").write_text("{")
    fails(other, "cannot be read")
    lacking = copy("lacking")
    (lacking / "segment_001.safetensors").unlink()
    fails(lacking, "lacks segment_001.safetensors")
    truncated = copy("truncated")
    weights = truncated / "segment_001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    fails(truncated, "segment_001.safetensors cannot be read")


def test_a_forward_that_fails_ends_its_requests_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(step: object) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(llm._executor, "submit", broken)
        with pytest.raises(RuntimeError, match="the device is gone"):
            llm.generate(TEXTS[0], greedy(5))
    assert llm._session.free_blocks == llm._session.pool_size
    assert llm.generate(TEXTS[0], greedy(5)).finished


def test_shutdown_finishes_what_runs_and_refuses_more(tiny_engine: Path) -> None:
    before = threading.active_count()
    llm = LLM(tiny_engine, device="cpu", max_seq_len=256)
    handle = llm.generate_async(TEXTS[0], greedy(30))
    llm.shutdown()
    assert len(handle.result(timeout=1).outputs[0].token_ids) == 30
    with pytest.raises(RequestError, match="was shut down"):
        llm.generate_async(TEXTS[0])
    assert threading.active_count() == before


def test_metrics_count_what_was_done(tiny_engine: Path) -> None:
    with LLM(tiny_engine, device="cpu", max_batch_size=4, max_seq_len=512) as llm:
        assert llm.metrics() == Metrics(kv_blocks_total=llm._session.pool_size)
        results = llm.generate(TEXTS, greedy(30), rectify_mode="verify")
        metrics = llm.metrics()
    stats = total(result.outputs[0].stats for result in results)
    assert (metrics.requests_active, metrics.requests_queued, metrics.kv_blocks_used) == (0, 0, 0)
    assert metrics.prompt_tokens == sum(len(result.prompt_token_ids) for result in results)
    assert metrics.generated_tokens == 5 * 30
    assert metrics.blocks_attended == stats.blocks_attended > 0
    assert metrics.drafts_proposed == stats.drafts > metrics.drafts_accepted
    assert metrics.drafts_accepted == stats.drafts_accepted > 0
    assert metrics.verifications == stats.verifications == stats.dense_passes
    assert metrics.drift_rows == stats.drift_rows > metrics.drift_agreed
    assert metrics.drift_agreed == stats.drift_agreed > 0
    assert metrics.drift_kl == pytest.approx(stats.drift_kl)
    assert 0 < metrics.sparse_steps < stats.sparse_steps
    assert metrics.dense_passes > 0
    assert min(metrics.step_seconds_sparse, metrics.step_seconds_dense) > 0
