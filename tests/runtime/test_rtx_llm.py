"""Whole requests on a GPU: the engine executor against plain PyTorch, and verify against dense."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.partings import check_partings
from tests.runtime.rtx_engines import build_tiny
from trt_resa import LLM, SamplingParams
from trt_resa.runtime.outputs import CompletionOutput

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TOKENS, PROMPTS = 200, 20
#: Below this distance of two log probabilities, fp16 may order them either way. Random weights make
#: that frequent, so most outputs may part somewhere.
TIE, EQUAL = 2e-2, 1
PARAMS = SamplingParams(max_tokens=TOKENS, ignore_eos=True, logprobs=2)
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "tensorrt": ({}, "tensorrt"),
    "kernels": ({"quantization": "w4a16", "executors": ("torch",)}, "kernels"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    build, linears = CASES[request.param]
    if linears == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
    path = tmp_path_factory.mktemp("llm") / request.param
    build_tiny(path, "qwen2", **build)
    return path, linears


def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(0, 320, 20 + 23 * i).tolist() for i in range(PROMPTS)]


def outputs(path: Path, mode: str, **options: Any) -> Iterator[CompletionOutput]:
    with LLM(path, device="cuda", **options) as llm:
        for result in llm.generate(prompts(), PARAMS, rectify_mode=mode):
            yield result.outputs[0]
        executor = llm._executor
        if hasattr(executor, "captures"):
            # A bucket each: 1, 2 or 4 sequences of a sparse step; 1 to 8 rows of a dense pass, for
            # 1 to 4 sequences and 0 to 8 logit rows; and chunks of 16 to 256 rows.
            assert 0 < executor.captures < 50


def test_dense_tokens_are_those_of_plain_pytorch(case: Any) -> None:
    path, linears = case
    ours = list(outputs(path, "dense", executor="tensorrt_rtx", linears=linears))
    theirs = list(outputs(path, "dense", executor="torch", dtype="float16"))
    check_partings(ours, theirs, EQUAL, TIE)


def test_verify_is_dense(case: Any) -> None:
    path, linears = case
    options = {"executor": "tensorrt_rtx", "linears": linears}
    ours = list(outputs(path, "verify", **options))
    check_partings(ours, list(outputs(path, "dense", **options)), EQUAL, TIE)


@pytest.mark.parametrize("mode", ["fused", "separate", "none"])
def test_every_mode_runs(case: Any, mode: str) -> None:
    path, linears = case
    found = [o.token_ids for o in outputs(path, mode, executor="tensorrt_rtx", linears=linears)]
    assert [len(tokens) for tokens in found] == [TOKENS] * PROMPTS
    assert len({token for tokens in found for token in tokens}) > 20


def test_a_batch_gives_what_its_requests_give_alone(case: Any) -> None:
    path, linears = case
    options: dict[str, Any] = {"executor": "tensorrt_rtx", "linears": linears}
    cache = {"enable_block_reuse": False}
    with LLM(path, device="cuda", kv_cache_config=cache, **options) as llm:
        results = [llm.generate(prompt, PARAMS, rectify_mode="dense") for prompt in prompts()]
    ours = list(outputs(path, "dense", **options))
    check_partings(ours, [result.outputs[0] for result in results], EQUAL, TIE)
