"""Appending to the paged KV cache and recomputing summaries.

Buffers of one layer: ``kv`` [num_blocks, 2, kv_heads, block_size, head_dim] (keys, then values)
and ``summary`` [num_blocks, kv_heads, 2, head_dim] (minimum, then maximum of the block's keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AppendPlan:
    """Where the rows of a forward go; the same for every layer.

    ``row_block`` and ``row_slot`` [T]: pool block and place in it of each row. ``touched`` [N]: the
    pool blocks written to, each once; ``touched_valid`` [N]: how many tokens each then holds.
    """

    row_block: torch.Tensor
    row_slot: torch.Tensor
    touched: torch.Tensor
    touched_valid: torch.Tensor


def plan_append(
    cu_query_lens: torch.Tensor,
    kv_lens: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
) -> AppendPlan:
    """Row j of sequence b goes to cache place ``kv_lens[b] - query_len[b] + j``."""
    query_lens = cu_query_lens.diff()
    sequence = torch.repeat_interleave(torch.arange(len(kv_lens)).to(query_lens), query_lens)
    rows = torch.arange(len(sequence)).to(query_lens)
    place = rows - cu_query_lens[sequence] + (kv_lens - query_lens)[sequence]
    block_index = place // block_size
    row_block = block_table[sequence, block_index]
    pairs = torch.unique(torch.stack((sequence, block_index)), dim=1)
    valid = (kv_lens[pairs[0]] - pairs[1] * block_size).clamp(max=block_size)
    return AppendPlan(row_block, place % block_size, block_table[pairs[0], pairs[1]], valid)


def append(
    kv: torch.Tensor,
    summary: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: AppendPlan,
) -> None:
    """Write ``keys`` (post-RoPE) and ``values`` [T, kv_heads, head_dim], then redo summaries.

    A summary is recomputed from the block's valid keys, never accumulated: a rewritten key may
    shrink it, and a block may hold garbage behind its valid tokens.
    """
    kv[plan.row_block, 0, :, plan.row_slot] = keys.to(kv.dtype)
    kv[plan.row_block, 1, :, plan.row_slot] = values.to(kv.dtype)
    recompute_summaries(kv, summary, plan.touched, plan.touched_valid)


def recompute_summaries(
    kv: torch.Tensor, summary: torch.Tensor, blocks: torch.Tensor, valid: torch.Tensor
) -> None:
    """Set the summaries of ``blocks`` [N] from their first ``valid`` [N] keys."""
    keys = kv[blocks, 0]
    slots = torch.arange(keys.shape[2], device=keys.device)
    empty = (slots[None, :] >= valid[:, None])[:, None, :, None]
    summary[blocks, :, 0] = keys.masked_fill(empty, torch.inf).amin(dim=2)
    summary[blocks, :, 1] = keys.masked_fill(empty, -torch.inf).amax(dim=2)
