"""Attention over the paged cache: one new query per sequence over a selection, or causal over all.

Both gather whole blocks and mask the places that hold no token, and both end in ``_attend``; so a
selection of every block gives the bits of the dense pass.
"""

from __future__ import annotations

import torch


def sparse_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    selection: torch.Tensor,
    kv_lens: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """One query per sequence over its selection.

    q [B, q_heads, head_dim]; kv one layer's pool; selection [B, kv_heads, S] block indices, -1
    unused; kv_lens [B]; block_table [B, M]. Returns [B, q_heads, head_dim].
    """
    batch, q_heads, head_dim = q.shape
    kv_heads, block_size = kv.shape[2], kv.shape[3]
    indices = selection.clamp(min=0)
    rows = torch.arange(batch, device=q.device)[:, None, None]
    heads = torch.arange(kv_heads, device=q.device)[None, :, None]
    pool = block_table[rows, indices].long()
    places = indices[..., None] * block_size + torch.arange(block_size, device=q.device)
    valid = (places < kv_lens[:, None, None, None]) & (selection >= 0)[..., None]
    valid = valid.reshape(batch, kv_heads, 1, -1)
    # As rows of one head's block, keys of a pool block first: copied whole, which is fast.
    stored = kv.view(-1, block_size * head_dim)
    of_keys = (pool * (2 * kv_heads) + heads).flatten()
    shape = (batch, kv_heads, -1, head_dim)
    keys = stored.index_select(0, of_keys).view(shape)
    values = stored.index_select(0, of_keys + kv_heads).view(shape)
    grouped = q.view(batch, kv_heads, -1, head_dim)
    return _attend(grouped, keys, values, valid).reshape(batch, q_heads, head_dim)


def dense_attention(
    q: torch.Tensor, kv: torch.Tensor, kv_len: int, blocks: torch.Tensor
) -> torch.Tensor:
    """The last n tokens of one sequence, causal over its whole cache.

    q [n, q_heads, head_dim]; blocks [number of blocks] pool blocks in order; kv_len counts the
    tokens after the append, the n included. Returns [n, q_heads, head_dim].
    """
    n, q_heads, head_dim = q.shape
    kv_heads = kv.shape[2]
    group = q_heads // kv_heads
    gathered = kv[blocks.long()]
    keys = gathered[:, 0].transpose(0, 1).reshape(1, kv_heads, -1, head_dim)
    values = gathered[:, 1].transpose(0, 1).reshape(1, kv_heads, -1, head_dim)
    places = torch.arange(keys.shape[2], device=q.device)
    last = kv_len - n + torch.arange(n, device=q.device)
    valid = (places[None, :] <= last[:, None])[None, None]
    # The query heads of a group become rows beside one another: [1, kv_heads, group * n, head_dim].
    grouped = q.view(n, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    out = _attend(
        grouped.reshape(1, kv_heads, group * n, head_dim),
        keys,
        values,
        valid.repeat(1, 1, group, 1) if n > 1 else valid,
    )
    out = out.view(kv_heads, group, n, head_dim).permute(2, 0, 1, 3)
    return out.reshape(n, q_heads, head_dim)


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v over the valid places; [B, H, rows, d] each, valid broadcast.

    ``keys`` and ``values`` are the caller's copies: places that no row may see are zeroed in them,
    since garbage there could be NaN, and 0 * NaN is NaN.
    """
    unseen = ~valid.any(dim=2)[..., None]
    keys.masked_fill_(unseen, 0)
    values.masked_fill_(unseen, 0)
    mask = valid.expand(q.shape[0], q.shape[1], q.shape[2], valid.shape[-1])
    return torch.nn.functional.scaled_dot_product_attention(
        q, keys.to(q.dtype), values.to(q.dtype), attn_mask=mask
    )
