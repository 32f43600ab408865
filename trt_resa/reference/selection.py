"""Scoring blocks from their summaries and choosing the selection."""

from __future__ import annotations

import torch

from trt_resa.blocks import attended_blocks, num_blocks
from trt_resa.config import SparseAttentionConfig


def scores(q: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
    """How large q.k may be over each block, the mean over the queries of each group.

    q [B, q_heads, head_dim] post-RoPE; summary [B, N, kv_heads, 2, head_dim]. Returns fp32
    [B, kv_heads, N]: the mean of c.q + sqrt(sum over d of (r_d q_d)^2), with c and r half the sum
    and half the difference of the block's largest and smallest keys.
    """
    batch, _, kv_heads, _, head_dim = summary.shape
    queries = q.float().view(batch, kv_heads, -1, head_dim)
    low, high = summary.float().unbind(dim=3)
    centre = torch.einsum("bhgd,bnhd->bhgn", queries, (high + low) / 2)
    spread = torch.einsum("bhgd,bnhd->bhgn", queries**2, ((high - low) / 2) ** 2)
    return (centre + spread.sqrt()).mean(dim=2)


def all_blocks(lengths: list[int], kv_heads: int, device: torch.device) -> torch.Tensor:
    """The selection of every block, [B, kv_heads, max(lengths)], padded with -1 at the end."""
    indices = torch.arange(max(lengths), device=device)
    unused = indices >= torch.tensor(lengths, device=device)[:, None]
    return indices.masked_fill(unused, -1)[:, None].expand(-1, kv_heads, -1)


def select(
    q: torch.Tensor,
    summary: torch.Tensor,
    kv_lens: list[int],
    block_table: torch.Tensor,
    config: SparseAttentionConfig,
) -> torch.Tensor:
    """Block indices that each sequence and KV head attends to: [B, kv_heads, S], ascending.

    S is the largest selection of the batch; shorter ones are padded with -1 at the end. Ties go
    to the lower index. q [B, q_heads, head_dim]; summary is the layer's pool.
    """
    lengths = [num_blocks(kv_len, config.block_size) for kv_len in kv_lens]
    counts = [attended_blocks(kv_len, config) for kv_len in kv_lens]
    width, widest = max(lengths), max(counts)
    heads = summary.shape[1]
    if counts == lengths:
        return all_blocks(lengths, heads, q.device)
    table = block_table[:, :width].clamp(min=0).long()
    ranked = scores(q, summary[table])
    for row, length in enumerate(lengths):
        ranked[row, :, length:] = -torch.inf
        ranked[row, :, : min(config.sink_blocks, length)] = torch.inf
        ranked[row, :, max(0, length - config.local_blocks) : length] = torch.inf
    order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :widest]
    limit = torch.tensor(counts, device=q.device)[:, None, None]
    outside = torch.arange(widest, device=q.device) >= limit
    ascending = order.masked_fill(outside, width).sort(dim=-1).values
    return ascending.masked_fill(outside, -1)
