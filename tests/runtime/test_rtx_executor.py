"""The engine executor on a GPU: against plain PyTorch, and graphs against single launches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.runtime.rtx_engines import (
    CASES,
    ERROR_BOUND,
    SPARSE,
    Batch,
    a_loop,
    build_tiny,
    check_captures_of_chunks,
    chunks,
    executors,
    limits_of,
    relative_error,
)
from trt_resa.config import KvCacheConfig
from trt_resa.contract import Phase
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import RequestError
from trt_resa.runtime.executors.base import Executor

pytestmark = pytest.mark.gpu

KERNELS = {"quantization": "w4a16", "executors": ("torch",)}
ALL_CASES = {
    **CASES,
    "qwen2-int4-kernels": {**KERNELS, "dtype": "bfloat16"},
    "llama-int4-kernels": KERNELS,
}

#: Makes the two executors of ``executors`` for an engine and what runs its segments.
Make = Callable[..., tuple[Executor, Executor]]


@pytest.fixture(scope="module", params=ALL_CASES)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    name = request.param
    linears = "kernels" if name.endswith("kernels") else "tensorrt"
    if linears == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
    path = tmp_path_factory.mktemp("rtx") / name
    engine = build_tiny(path, name.partition("-")[0], **ALL_CASES[name])
    return functools.partial(executors, engine, linears=linears)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> EngineDirectory:
    pytest.importorskip("tensorrt_rtx")
    return build_tiny(tmp_path_factory.mktemp("rtx") / "llama", "llama")


def test_logits_are_those_of_plain_pytorch(make: Make) -> None:
    """Everything is attended to, so no near-tie of block scores can part the two."""
    rtx, reference = make(sparse=dataclasses.replace(SPARSE, keep_ratio=1.0))
    bound = ERROR_BOUND[rtx.dtype]
    batch = Batch(3, rtx.model.vocab_size, rtx.num_blocks)
    for step in a_loop(batch):
        ours, theirs = rtx.forward(step), reference.forward(step)
        assert ours.shape == theirs.shape
        error = relative_error(ours, theirs)
        assert error < bound, f"{step.phase} of {step.num_tokens} rows: {error}"


def test_a_selection_parts_from_pytorch_only_at_near_ties(make: Make) -> None:
    rtx, reference = make()
    bound = ERROR_BOUND[rtx.dtype]
    batch = Batch(3, rtx.model.vocab_size, rtx.num_blocks)
    errors = [relative_error(rtx.forward(s), reference.forward(s)) for s in a_loop(batch)]
    assert np.median(errors) < bound, errors


def same_bits(first: Executor, second: Executor, batch: Batch) -> None:
    for step in a_loop(batch):
        a, b = first.forward(step), second.forward(step)
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_a_replay_gives_the_bits_of_single_launches(make: Make) -> None:
    graphs, _ = make()
    single, _ = make(graphs=False)
    batch = Batch(3, graphs.model.vocab_size, graphs.num_blocks)
    for _ in range(3):  # the third time every graph is there
        same_bits(graphs, single, batch)
    assert graphs.captures > 0
    assert single.captures == 0


def test_chunks_of_growing_prompts_are_captured_once(make: Make) -> None:
    graphs, _ = make()
    single, _ = make(graphs=False)
    check_captures_of_chunks(graphs, single)


def test_the_host_submits_a_captured_chunk_ahead(make: Make) -> None:
    """A graph reads its inputs when it runs: those of the next chunk come behind it."""
    rtx, _ = make()
    batch = Batch(4, rtx.model.vocab_size, rtx.num_blocks)
    steps = list(chunks(batch, {0: 700, 1: 650, 2: 690, 3: 600}, 150))
    expected = [rtx.forward(step) for step in steps]
    under_way = [rtx.submit(step).logits() for step in steps]
    assert all(torch.equal(a.get(), b) for a, b in zip(under_way, expected, strict=True))


def test_growing_joining_and_leaving_never_recapture(llama: EngineDirectory) -> None:
    rtx, _ = executors(llama)
    batch = Batch(4, rtx.model.vocab_size, rtx.num_blocks)
    for seq in range(4):
        rtx.forward(batch.step(Phase.DENSE, {seq: (0, 40)}))
    for count in (1, 2, 4):
        rtx.forward(batch.step(Phase.SPARSE, {seq: (40, 41) for seq in range(count)}))
    captured = rtx.captures
    for turn in range(400):
        members = range(turn % 4, 4) if turn % 5 else range(1 + turn % 3)
        rtx.submit(batch.step(Phase.SPARSE, {seq: (41 + turn, 42 + turn) for seq in members}))
    assert torch.isfinite(rtx.forward(batch.step(Phase.SPARSE, {0: (441, 442)}))).all()
    assert rtx.captures == captured


def test_the_host_can_be_a_step_ahead(llama: EngineDirectory) -> None:
    """Tokens that the host has not seen yet lead where the same tokens lead when it has."""
    rtx, _ = executors(llama)
    batch = Batch(2, rtx.model.vocab_size, rtx.num_blocks)

    def generate(late: bool) -> np.ndarray:
        fetched = [rtx.submit(batch.step(Phase.DENSE, {0: (0, 90), 1: (0, 30)})).tokens()]
        for turn in range(25):
            step = batch.step(Phase.SPARSE, {0: (90 + turn, 91 + turn), 1: (30 + turn, 31 + turn)})
            ids = np.array([-1, -2], dtype=np.int32) if late else fetched[-1].get()
            fetched.append(rtx.submit(dataclasses.replace(step, input_ids=ids)).tokens())
        return np.stack([each.get() for each in fetched])

    expected = generate(late=False)
    assert len(np.unique(expected)) > 5, "a constant output would show nothing"
    assert np.array_equal(generate(late=True), expected)


def test_tokens_are_the_argmax_of_the_logits(llama: EngineDirectory) -> None:
    rtx, _ = executors(llama)
    batch = Batch(3, rtx.model.vocab_size, rtx.num_blocks)
    submitted = rtx.submit(batch.step(Phase.DENSE, {0: (0, 8)}, all_logits=True))
    assert submitted.tokens().get().tolist() == submitted.logits().get().argmax(-1).tolist()


def test_a_forward_beyond_the_limits_is_refused(llama: EngineDirectory) -> None:
    rtx, _ = executors(llama)
    batch = Batch(1, rtx.model.vocab_size, rtx.num_blocks)
    with pytest.raises(RequestError, match="257 rows was asked for; 1 to 256 fit"):
        rtx.forward(batch.step(Phase.DENSE, {0: (0, 257)}))


def test_memory_does_not_grow(llama: EngineDirectory) -> None:
    rtx, _ = executors(llama)
    batch = Batch(3, rtx.model.vocab_size, rtx.num_blocks)
    for _ in range(3):
        for step in a_loop(batch):
            rtx.forward(step)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(20):
        for step in a_loop(batch):
            rtx.forward(step)
    assert before - torch.cuda.mem_get_info()[0] < 4 << 20


def test_no_room_for_a_cache_is_one_error(llama: EngineDirectory) -> None:
    from trt_resa.runtime.executors.rtx_executor import RtxExecutor

    tiny = KvCacheConfig(free_gpu_memory_fraction=1e-9)
    with pytest.raises(RequestError, match="no room for a KV cache"):
        RtxExecutor(llama, SPARSE, tiny, limits_of(llama), torch.device("cuda"))
