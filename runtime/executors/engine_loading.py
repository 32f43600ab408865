"""What the ``tensorrt_rtx`` executor takes from an engine directory."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch

from trt_resa.engine_dir import ATTENTION_WEIGHTS, EngineDirectory, segment_engine
from trt_resa.errors import EngineError
from trt_resa.runtime.executors.rtx_segments import RtxSegments
from trt_resa.values import value_specs


def load_segments(engine: EngineDirectory, device: torch.device) -> RtxSegments:
    """The engines, on ``device``.

    Raises EngineError when the directory holds none, or when they are of another TensorRT-RTX or
    not for this GPU.
    """
    config = engine.config
    built_for = config.build_config.executors
    if "tensorrt_rtx" not in built_for:
        raise EngineError(
            f"{engine.path} holds no engines for the executor tensorrt_rtx (it was built with "
            f"--executors {','.join(built_for)}); build it again with --executors tensorrt_rtx"
        )
    # Imported here, since that needs TensorRT-RTX and the checks above do not.
    from trt_resa.rtx import check_gpu, check_version

    check_version(config.build_info, engine.path)
    check_gpu(torch.cuda.get_device_capability(device))
    specs = value_specs(engine.network, config.pretrained_config, config.build_config.dtype)
    segments = engine.network.segments()
    files = [engine.path / segment_engine(index) for index in range(len(segments))]
    with torch.cuda.device(device):
        return RtxSegments(files, segments, specs)


def attention_weights(
    engine: EngineDirectory, device: torch.device, dtype: torch.dtype
) -> list[dict[str, torch.Tensor]]:
    """Weights of each attention node by role, ``q_norm`` and ``k_norm`` or none."""
    nodes = engine.network.attention_nodes
    if not any(node.weights for node in nodes):
        return [{} for _ in nodes]
    path = engine.path / ATTENTION_WEIGHTS
    try:
        stored = safetensors.torch.load_file(path)
        return [
            {role: stored[w.name].to(device, dtype) for role, w in node.weights.items()}
            for node in nodes
        ]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise EngineError(
            f"{path} cannot be read ({error}); build the engine again with trt-resa build-engine"
        ) from None
