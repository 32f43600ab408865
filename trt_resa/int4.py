"""The INT4 storage of a linear: packing, and the exact values it stands for.

``qweight`` is uint8 [K, N / 2]: two's-complement nibbles of W.T, the even column in the low half.
``scales`` and ``offsets`` are [K / 128, N]; a weight without zero points has no offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trt_resa.network import INT4_BLOCK


@dataclass(frozen=True)
class Int4Weight:
    """W.T[k, n] = q[k, n] * scales[k // 128, n] + offsets[k // 128, n]."""

    qweight: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None = None


def pack(values: torch.Tensor) -> torch.Tensor:
    """Integers in [-8, 7], [K, N] with N even, as uint8 [K, N / 2]."""
    nibbles = values.to(torch.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack(qweight: torch.Tensor) -> torch.Tensor:
    """int8 [K, N] in [-8, 7] of a packed uint8 [K, N / 2]."""
    nibbles = torch.stack((qweight & 0xF, qweight >> 4), dim=-1).flatten(-2)
    return (nibbles ^ 8).to(torch.int8) - 8


def dequantize(weight: Int4Weight) -> torch.Tensor:
    """W.T in fp32, [K, N]."""
    blocks = unpack(weight.qweight).float().unflatten(0, (-1, INT4_BLOCK))
    blocks *= weight.scales.float()[:, None]
    if weight.offsets is not None:
        blocks += weight.offsets.float()[:, None]
    return blocks.flatten(0, 1)
