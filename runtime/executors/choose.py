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

#: What a user may ask for; auto: where there are a GPU and engines, their executor, else torch.
ExecutorChoice = Literal["auto", "tensorrt_rtx", "tensorrt", "torch"]
#: Executors that run engines on a GPU; auto takes the first that the directory was built for.
_OF_ENGINES = ("tensorrt_rtx", "tensorrt")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose(choice: str, engine: EngineDirectory, device: torch.device) -> str:
    """Name of the executor. Raises ConfigError when ``choice`` cannot run on ``device``."""
    if choice not in get_args(ExecutorChoice):
        names = ", ".join(map(repr, get_args(ExecutorChoice)))
        raise ConfigError(f"executor {choice!r} cannot run here; use one of {names}")
    if choice == "auto":
        built = engine.config.build_config.executors
        able = (name for name in _OF_ENGINES if name in built and device.type == "cuda")
        return next(able, "torch")
    if choice in _OF_ENGINES and device.type != "cuda":
        raise ConfigError(
            f"executor {choice!r} needs an NVIDIA GPU and the device is {device.type}; use "
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
    gpu_weights_percent: float | None = None,
) -> Executor:
    """The executor of ``choice`` with its weights and cache on ``device``.

    ``dtype`` is the torch executor's: float32 on a CPU and the engine's on a GPU unless given.
    ``linears`` is that of tensorrt_rtx, ``gpu_weights_percent`` that of tensorrt.
    """
    built = engine.config.build_config.dtype
    name = choose(choice, engine, device)
    for option, value, default, owner in (
        ("linears", linears, "auto", "tensorrt_rtx"),
        ("gpu_weights_percent", gpu_weights_percent, None, "tensorrt"),
    ):
        if value != default and name != owner:
            raise ConfigError(
                f"{option} {value!r} is for executor {owner!r}, and {name!r} runs here; leave it "
                "out"
            )
    if name in _OF_ENGINES and dtype not in (None, built):
        raise ConfigError(
            f"dtype {dtype!r} differs from the engine's {built!r}, which is fixed when it is "
            "built; leave it out, or use executor 'torch'"
        )
    if name == "tensorrt_rtx":
        from trt_resa.runtime.executors.rtx_executor import RtxExecutor

        return RtxExecutor(engine, sparse, kv_cache, limits, device, linears)
    if name == "tensorrt":
        from trt_resa.runtime.executors.trt_executor import TrtExecutor

        return TrtExecutor(engine, sparse, kv_cache, limits, device, gpu_weights_percent)
    chosen = dtype or ("float32" if device.type == "cpu" else built)
    if chosen not in _DTYPES:
        raise ConfigError(f"dtype {chosen!r} is not one of {', '.join(_DTYPES)}")
    return TorchExecutor(engine, sparse, kv_cache, limits, device, _DTYPES[chosen])
