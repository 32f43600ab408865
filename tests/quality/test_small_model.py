"""The committed checkpoint of the small model still does what the quality tables say of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import build_torch_engine
from trt_resa import LLM, SamplingParams
from trt_resa.runtime.quality.chains import CHAIN_TASKS
from trt_resa.runtime.quality.retrieval import retrieval_questions
from trt_resa.runtime.quality.samples import Sample
from trt_resa.runtime.quality.tasks import PromptMaker

pytestmark = pytest.mark.slow
CHECKPOINT = Path(__file__).resolve().parents[2] / "benchmarks" / "quality_model" / "checkpoint"
MODES = ("dense", "verify", "fused")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    engine = build_torch_engine(CHECKPOINT, tmp_path_factory.mktemp("small"), min_blocks=4)
    with LLM(engine, device="cpu", kv_cache_config={"max_tokens": 16384}) as opened:
        yield opened


def answers(llm: LLM, samples: list[Sample], tokens: int) -> dict[str, list[str]]:
    """Greedy answers to ``samples`` by mode."""
    assert llm.tokenizer is not None
    maker = PromptMaker(llm.tokenizer, chat=False)
    prompts = [maker.ids(maker.prompt(sample.body, sample.prefix)) for sample in samples]
    found = {}
    for mode in MODES:
        results = llm.generate(prompts, SamplingParams(max_tokens=tokens), rectify_mode=mode)
        found[mode] = [result.outputs[0].text for result in results]
    return found


def test_dense_finds_what_is_hidden_and_verify_says_the_same(llm: LLM) -> None:
    samples = [
        retrieval_questions(task, seed, 60, 0.5)[0]
        for task in ("single", "multi_key")
        for seed in range(2)
    ]
    found = answers(llm, samples, 24)
    for sample, text in zip(samples, found["dense"], strict=True):
        assert all(answer in text for answer in sample.expected), (sample.expected, text)
    assert found["verify"] == found["dense"]


def test_dense_solves_a_chain_that_fused_does_not_and_verify_does(llm: LLM) -> None:
    sample = CHAIN_TASKS["arithmetic"](0, 60)
    found = answers(llm, [sample], 96)
    assert found["dense"][0].strip()
    assert sample.answer.strip().startswith(found["dense"][0].strip())
    assert found["verify"] == found["dense"]
    assert found["fused"] != found["dense"]
