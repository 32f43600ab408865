"""Which executor runs an engine directory on a device."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError
from trt_resa.runtime.executors.base import Executor, Limits
from trt_resa.runtime.executors.engine_loading import Linears
from trt_resa.runtime.executors.torch_executor import TorchExecutor

#: What a user may ask for; auto: tensorrt_rtx where there are a GPU and engines, else torch.
ExecutorChoice = Literal["auto", "tensorrt_rtx", "torch"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose(choice: str, engine: EngineDirectory, device: torch.device) -> str:
    """Name of the executor. Raises ConfigError when ``choice`` cannot run on ``device``."""
    if choice not in get_args(ExecutorChoice):
        names = ", ".join(map(repr, get_args(ExecutorChoice)))
        raise ConfigError(f"executor {choice!r} cannot run here; use one of {names}")
    if choice == "auto":
        built = "tensorrt_rtx" in engine.config.build_config.executors
        return "tensorrt_rtx" if built and device.type == "cuda" else "torch"
    if choice == "tensorrt_rtx" and device.type != "cuda":
        raise ConfigError(
            f"executor 'tensorrt_rtx' needs an NVIDIA GPU and the device is {device.type}; use "
            "'torch', which runs on a CPU"
        )
    return choice


def make_executor(
    choice: str,
    engine: EngineDirectory,
    sparse: SparseAttentionConfig,
    kv_cache: KvCacheConfig,
    limits: Limits,
    device: torch.device,
    dtype: str | None,
    linears: Linears = "auto",
) -> Executor:
    """The executor of ``choice`` with its weights and cache on ``device``.

    ``dtype`` is the torch executor's: float32 on a CPU and the engine's on a GPU unless given.
    ``linears`` is that of tensorrt_rtx.
    """
    built = engine.config.build_config.dtype
    if choose(choice, engine, device) == "tensorrt_rtx":
        if dtype not in (None, built):
            raise ConfigError(
                f"dtype {dtype!r} differs from the engine's {built!r}, which is fixed when it is "
                "built; leave it out, or use executor 'torch'"
            )
        from trt_resa.runtime.executors.rtx_executor import RtxExecutor

        return RtxExecutor(engine, sparse, kv_cache, limits, device, linears)
    if linears != "auto":
        raise ConfigError(
            f"linears {linears!r} is for executor 'tensorrt_rtx', and 'torch' runs here; leave it "
            "out"
        )
    chosen = dtype or ("float32" if device.type == "cpu" else built)
    if chosen not in _DTYPES:
        raise ConfigError(f"dtype {chosen!r} is not one of {', '.join(_DTYPES)}")
    return TorchExecutor(engine, sparse, kv_cache, limits, device, _DTYPES[chosen])
