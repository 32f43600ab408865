"""Block arithmetic: how many blocks a sequence has and how many of them a sparse step reads.

The C++ twin is ``plugins/kernels/blocks.h``; a test compares the two over a range of inputs.
"""

from __future__ import annotations

import math

from trt_resa.config import SparseAttentionConfig


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that hold ``num_tokens`` tokens; the last one may be partly filled."""
    return -(-num_tokens // block_size)


def num_selected(num_blocks: int, keep_ratio: float, min_blocks: int) -> int:
    """Blocks in the selection of a sequence of ``num_blocks`` blocks.

    ``max(ceil(keep_ratio * n), min(n, min_blocks))``, never more than n. The product is taken in
    double precision, as in C++.
    """
    wanted = min(math.ceil(keep_ratio * num_blocks), num_blocks)
    return max(wanted, min(num_blocks, min_blocks))


def attended_blocks(kv_len: int, config: SparseAttentionConfig) -> int:
    """Blocks per KV head that a sparse step over ``kv_len`` tokens attends to.

    A sequence of at most ``dense_below`` tokens attends to all of its blocks.
    """
    blocks = num_blocks(kv_len, config.block_size)
    if kv_len <= config.dense_below:
        return blocks
    return num_selected(blocks, config.keep_ratio, config.min_blocks)
