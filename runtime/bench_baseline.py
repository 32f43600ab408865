"""The dense baseline of others: PyTorch's attention, by its fastest backends."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from trt_resa.model_config import ModelConfig
from trt_resa.runtime.bench_timing import COLD_BYTES, graph_us

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_REPLAYS = 12


def sdpa_ms(model: ModelConfig, dtype: torch.dtype, batch: int, context: int) -> dict[str, float]:
    """Milliseconds of one query per sequence over contiguous K/V, times the model's layers.

    Medians over replays of a CUDA graph. A backend that refuses, or for which no memory is left,
    is absent.
    """
    keys = (batch, model.num_kv_heads, context, model.head_dim)
    copy_bytes = 2 * math.prod(keys) * dtype.itemsize
    copies = math.ceil(COLD_BYTES / copy_bytes)
    if torch.cuda.mem_get_info()[0] < 1.1 * copies * copy_bytes + (1 << 30):
        return {}

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    q = noise(batch, model.num_heads, 1, model.head_dim)
    attend = partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=True)
    attends = [partial(attend, q, noise(*keys), noise(*keys)) for _ in range(copies)]
    found = {}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                found[name] = graph_us(attends, _REPLAYS) / 1e3 * model.num_layers
        except RuntimeError:
            continue
    return found
