"""Scoring blocks from their summaries and choosing the selection."""

from __future__ import annotations

import torch

from trt_resa.blocks import attended_blocks, num_blocks
from trt_resa.config import SparseAttentionConfig


def scores(q: torch.Tensor, summary: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """How much of its heads' attention each block may get, [B, kv_heads, N], fp32.

    q [B, q_heads, head_dim] post-RoPE; summary [B, N, kv_heads, 2, head_dim]; scored [B, N] bool,
    the blocks that compete. With c and r half the sum and half the difference of a block's largest
    and smallest keys, c.q + sqrt(sum over d of (r_d q_d)^2) stands for the largest q.k in it. The
    score is the sum, over the group's queries, of its softmax over the scored blocks. What is NaN
    is left out of the sums of other blocks.
    """
    batch, _, kv_heads, _, head_dim = summary.shape
    queries = q.float().view(batch, kv_heads, -1, head_dim)
    low, high = summary.float().unbind(dim=3)
    centre = torch.einsum("bhgd,bnhd->bhgn", queries, (high + low) / 2)
    spread = torch.einsum("bhgd,bnhd->bhgn", queries**2, ((high - low) / 2) ** 2)
    terms = (centre + spread.sqrt()) * head_dim**-0.5
    left_out = terms.isnan() | ~scored[:, None, None]
    all_of_head = terms.masked_fill(left_out, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return (terms - all_of_head).exp().sum(dim=2)


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
    places = torch.arange(width, device=q.device)
    ends = torch.tensor(lengths, device=q.device)[:, None]
    exists = places < ends
    scored = (places >= config.sink_blocks) & (places < ends - config.local_blocks)
    ranked = scores(q, summary[table], scored)
    ranked = ranked.masked_fill((exists & ~scored)[:, None], torch.inf)
    ranked = ranked.masked_fill(~exists[:, None], -torch.inf)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :widest]
    limit = torch.tensor(counts, device=q.device)[:, None, None]
    outside = torch.arange(widest, device=q.device) >= limit
    ascending = order.masked_fill(outside, width).sort(dim=-1).values
    return ascending.masked_fill(outside, -1)
