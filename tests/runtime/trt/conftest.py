"""``tensorrt``, an engine for it and executors of that engine, all without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.runtime.rtx_engines import SPARSE, build_tiny, limits_of
from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.executors.trt_executor import TrtExecutor

if TYPE_CHECKING:  # it needs TensorRT-RTX, which is not beside TensorRT in its container
    from tests.runtime.trt.stand_in import StandIn

#: Makes an executor of the built engine.
Make = Callable[..., TrtExecutor]


@pytest.fixture(scope="module")
def module() -> Iterator[StandIn]:
    """``tensorrt`` in a module's tests."""
    from tests.runtime.trt.stand_in import StandIn

    with pytest.MonkeyPatch.context() as patch:
        tensorrt = StandIn()
        patch.setitem(sys.modules, "tensorrt", tensorrt)
        sys.modules.pop("trt_resa.trt", None)
        yield tensorrt
        sys.modules.pop("trt_resa.trt", None)


@pytest.fixture(scope="module")
def engine(
    request: pytest.FixtureRequest,
    module: StandIn,
    tmp_path_factory: pytest.TempPathFactory,
) -> EngineDirectory:
    """A random model; its family is llama, or the parameter."""
    family = getattr(request, "param", "llama")
    path = tmp_path_factory.mktemp("trt") / family
    module.reference = build_tiny(path, family, executors=("tensorrt", "torch"))
    return module.reference


@pytest.fixture
def make(engine: EngineDirectory, module: StandIn, monkeypatch: pytest.MonkeyPatch) -> Make:
    from tests.runtime.trt.stand_in import put_cuda_on_the_host

    put_cuda_on_the_host(monkeypatch, module)
    monkeypatch.setattr(module, "streamable", 0)
    monkeypatch.setattr(module, "stripped", 0)

    def executor(sparse: SparseAttentionConfig = SPARSE, **options: Any) -> TrtExecutor:
        limits = options.pop("limits", limits_of(engine))
        return TrtExecutor(engine, sparse, KvCacheConfig(), limits, torch.device("cpu"), **options)

    return executor
