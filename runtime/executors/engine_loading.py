"""What the ``tensorrt_rtx`` executor takes from an engine directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import safetensors
import torch

from trt_resa.config import ExecutorName
from trt_resa.engine_dir import (
    ATTENTION_WEIGHTS,
    EngineDirectory,
    segment_engine,
    segment_weights,
)
from trt_resa.errors import ConfigError, EngineError
from trt_resa.int4_tiles import fits_tiles
from trt_resa.kernels import load_library
from trt_resa.network import Weight
from trt_resa.runtime.executors.kernel_segments import KernelSegments
from trt_resa.runtime.executors.rtx_segments import RtxSegments
from trt_resa.values import linear_size, value_specs

#: What runs the linears of a segment; auto: what is faster on the GPU, of what can run.
Linears = Literal["auto", "tensorrt", "kernels"]

#: What a directory must have been built for (``--executors``) to hold what either runs.
BUILT_FOR: Mapping[Linears, ExecutorName] = {"kernels": "torch", "tensorrt": "tensorrt_rtx"}

#: GPUs, by compute capability, on which 16-bit weights run faster through PyTorch's GEMMs at every
#: number of rows (docs/gpu_runtime.md). TensorRT-RTX does not support them officially.
_PYTORCH_AHEAD = ((9, 0),)


def faster_linears(int4: bool, capability: tuple[int, int]) -> Linears:
    """``tensorrt`` or ``kernels``, for INT4 or 16-bit weights on a GPU of a compute capability."""
    return "kernels" if int4 or capability in _PYTORCH_AHEAD else "tensorrt"


def choose_linears(
    choice: Linears, engine: EngineDirectory, capability: tuple[int, int]
) -> Linears:
    """``tensorrt`` or ``kernels``. Raises ConfigError when the directory does not hold them."""
    built_for = engine.config.build_config.executors
    int4 = [n for n in engine.network.nodes if "qweight" in n.weights]
    fit = all("offsets" not in n.weights and fits_tiles(*linear_size(n)) for n in int4)
    if choice == "auto":
        can = fit and BUILT_FOR["kernels"] in built_for
        return faster_linears(bool(int4), capability) if can else "tensorrt"
    if choice not in get_args(Linears):
        raise ConfigError(f"linears {choice!r} is not one of {', '.join(get_args(Linears))}")
    if choice == "kernels" and not fit:
        raise ConfigError(
            f"linears 'kernels' takes INT4 weights without zero points and with columns in "
            f"sixteens, and {engine.path} has others; use 'tensorrt'"
        )
    needed = BUILT_FOR[choice]
    if needed not in built_for:
        raise EngineError(
            f"{engine.path} holds nothing that linears '{choice}' could run (it was built with "
            f"--executors {','.join(built_for)}); build it again with --executors {needed}"
        )
    return choice


def load_segments(
    engine: EngineDirectory, linears: Linears, device: torch.device
) -> RtxSegments | KernelSegments:
    """The segments on ``device``, as TensorRT-RTX engines or as kernels.

    Raises EngineError when the directory holds none, or when its engines are of another
    TensorRT-RTX or not for this GPU.
    """
    segments = engine.network.segments()
    capability = torch.cuda.get_device_capability(device)
    if choose_linears(linears, engine, capability) == "kernels":
        dtype = getattr(torch, engine.config.build_config.dtype)
        weights = (
            _stored(engine.path / segment_weights(index), segment.weights, device, dtype)
            for index, segment in enumerate(segments)
        )
        return KernelSegments(segments, weights, load_library())
    built_for = engine.config.build_config.executors
    if "tensorrt_rtx" not in built_for:
        raise EngineError(
            f"{engine.path} holds no engines for the executor tensorrt_rtx (it was built with "
            f"--executors {','.join(built_for)}); build it again with --executors tensorrt_rtx"
        )
    # Imported here, since that needs TensorRT-RTX and the checks above do not.
    from trt_resa.rtx import check_gpu, check_version

    config = engine.config
    check_version(config.build_info, engine.path)
    check_gpu(capability)
    specs = value_specs(engine.network, config.pretrained_config, config.build_config.dtype)
    files = [engine.path / segment_engine(index) for index in range(len(segments))]
    with torch.cuda.device(device):
        return RtxSegments(files, segments, specs)


def attention_weights(
    engine: EngineDirectory, device: torch.device, dtype: torch.dtype
) -> list[dict[str, torch.Tensor]]:
    """Weights of each attention node by role, ``q_norm`` and ``k_norm`` or none."""
    nodes = engine.network.attention_nodes
    needed = [weight for node in nodes for weight in node.weights.values()]
    if not needed:
        return [{} for _ in nodes]
    stored = _stored(engine.path / ATTENTION_WEIGHTS, needed, device, dtype)
    return [{role: stored[w.name] for role, w in node.weights.items()} for node in nodes]


def _stored(
    path: Path, weights: Iterable[Weight], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Tensors of a file by name; floating ones in ``dtype``."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {weight.name: file.get_tensor(weight.name) for weight in weights}
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineError(
            f"{path} cannot be read ({error}); build the engine again with trt-resa build-engine"
        ) from None
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }
