"""The executor of data-centre TensorRT on a GPU: engines built with it, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.rtx_engines import (
    CASES,
    ERROR_BOUND,
    SPARSE,
    Batch,
    a_loop,
    build_tiny,
    limits_of,
    relative_error,
)
from trt_resa.config import KvCacheConfig
from trt_resa.contract import Phase
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.executors.torch_executor import TorchExecutor
from trt_resa.runtime.executors.trt_executor import TrtExecutor

pytest.importorskip("tensorrt", reason="data-centre TensorRT is not installed")
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=CASES)
def gpu_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EngineDirectory:
    name = request.param
    path = tmp_path_factory.mktemp("trt") / name
    family = name.partition("-")[0]
    return build_tiny(path, family, executors=("tensorrt", "torch"), **CASES[name])


def executor(engine: EngineDirectory, graphs: bool = True) -> TrtExecutor:
    limits, device = limits_of(engine), torch.device("cuda")
    return TrtExecutor(engine, SPARSE, KvCacheConfig(), limits, device, graphs=graphs)


def test_logits_are_those_of_plain_pytorch(gpu_engine: EngineDirectory) -> None:
    """Prefill agrees always; a sparse step may part at a near-tie of block scores."""
    ours = executor(gpu_engine)
    device, limits = torch.device("cuda"), limits_of(gpu_engine)
    theirs = TorchExecutor(gpu_engine, SPARSE, KvCacheConfig(), limits, device, ours.dtype)
    bound = ERROR_BOUND[ours.dtype]
    batch = Batch(3, ours.model.vocab_size, ours.num_blocks)
    sparse = []
    for number, step in enumerate(a_loop(batch)):
        error = relative_error(ours.forward(step), theirs.forward(step))
        if step.phase is Phase.SPARSE:
            sparse.append(error)
        elif number < 3:  # before any sparse step has written to the cache
            assert error < bound, f"prefill of {step.num_tokens} rows: {error}"
    assert sorted(sparse)[len(sparse) // 2] < bound, sparse


def test_a_replay_gives_the_bits_of_single_launches(gpu_engine: EngineDirectory) -> None:
    graphs, single = executor(gpu_engine), executor(gpu_engine, graphs=False)
    batch = Batch(3, graphs.model.vocab_size, graphs.num_blocks)
    for _ in range(2):  # the second time every graph is there
        for step in a_loop(batch):
            a, b = graphs.forward(step), single.forward(step)
            assert torch.equal(a.view(torch.int32), b.view(torch.int32))
    assert graphs.captures > 0
    assert single.captures == 0
