"""How many blocks the KV cache gets."""

from __future__ import annotations

import os

import torch

from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig
from trt_resa.errors import RequestError
from trt_resa.model_config import ModelConfig
from trt_resa.runtime.executors.base import Limits


def cache_blocks(
    model: ModelConfig,
    block_size: int,
    limits: Limits,
    config: KvCacheConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Blocks of the pool: what the batch can use at most, bounded by ``config``.

    Called after the weights are in place, since the fraction is of the memory left then. Raises
    RequestError when not even one block fits.
    """
    per_block = int(model.kv_bytes_per_token(block_size, dtype.itemsize) * block_size)
    usable = _free_bytes(device) * config.free_gpu_memory_fraction
    useful = limits.max_batch_size * num_blocks(limits.max_seq_len, block_size)
    if config.max_tokens is not None:
        useful = min(useful, num_blocks(config.max_tokens, block_size))
    count = min(useful, int(usable // per_block))
    if count < 1:
        raise RequestError(
            f"no room for a KV cache: a block of {block_size} tokens takes {per_block} bytes over "
            f"{model.num_layers} layers and {int(usable)} bytes are usable on {device}; free "
            "memory or raise free_gpu_memory_fraction"
        )
    return count


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
