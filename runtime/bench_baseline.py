"""The dense baseline of others: PyTorch's attention, by its fastest backends."""

from __future__ import annotations

import math
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from trt_resa.model_config import ModelConfig

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
#: Bytes that a rotation of caches reads at least, so that no L2 cache holds them.
_COLD_BYTES = 200 << 20
_REPLAYS = 12


def sdpa_ms(model: ModelConfig, dtype: torch.dtype, batch: int, context: int) -> dict[str, float]:
    """Milliseconds of one query per sequence over contiguous K/V, times the model's layers.

    Medians over replays of a CUDA graph. A backend that refuses, or for which no memory is left,
    is absent.
    """
    keys = (batch, model.num_kv_heads, context, model.head_dim)
    copy_bytes = 2 * math.prod(keys) * dtype.itemsize
    copies = max(1, math.ceil(_COLD_BYTES / copy_bytes))
    if torch.cuda.mem_get_info()[0] < 1.1 * copies * copy_bytes + (1 << 30):
        return {}

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    q = noise(batch, model.num_heads, 1, model.head_dim)
    caches = [[noise(*keys) for _ in range(2)] for _ in range(copies)]
    found = {}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                found[name] = _graph_ms(q, caches) * model.num_layers
        except RuntimeError:
            continue
    return found


def _graph_ms(q: torch.Tensor, caches: list[list[torch.Tensor]]) -> float:
    attend = torch.nn.functional.scaled_dot_product_attention
    for k, v in caches:
        attend(q, k, v, enable_gqa=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for k, v in caches:
            attend(q, k, v, enable_gqa=True)
    times = []
    for _ in range(_REPLAYS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(caches))
    return statistics.median(times[2:])
