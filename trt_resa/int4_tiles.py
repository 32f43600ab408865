"""INT4 weights in the order in which ``int4_linear`` reads them: tiles for the tensor cores.

The layout stands in ``plugins/include/trt_resa/int4_linear.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trt_resa.int4 import Int4Weight, unpack
from trt_resa.network import INT4_BLOCK

#: Columns of the product and of the input in a tile.
TILE_COLUMNS, TILE_INPUTS = 16, 64


@dataclass(frozen=True)
class Int4Tiles:
    """``weight`` int32 [N / 16, K / 64, 32, 4], ``scales`` [N / 16, K / 128, 8, 2].

    ``swiglu``: gate and up columns, the two halves of N, share tiles.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    swiglu: bool

    @property
    def in_columns(self) -> int:
        return self.weight.shape[1] * TILE_INPUTS

    @property
    def out_columns(self) -> int:
        return self.weight.shape[0] * TILE_COLUMNS


def fits_tiles(in_columns: int, out_columns: int) -> bool:
    return in_columns % INT4_BLOCK == 0 and out_columns % TILE_COLUMNS == 0


def pack_tiles(weight: Int4Weight, swiglu: bool) -> Int4Tiles:
    """``weight`` without offsets and of a size that fits; on its own device."""
    assert weight.offsets is None
    k, n = weight.qweight.shape[0], 2 * weight.qweight.shape[1]
    assert fits_tiles(k, n)
    numbers, scales = unpack(weight.qweight) + 8, weight.scales
    if swiglu:
        halves = torch.arange(n, device=scales.device).view(2, -1, TILE_COLUMNS // 2)
        order = halves.transpose(0, 1).flatten()
        numbers, scales = numbers[:, order], scales[:, order]
    # k = 64 tile + 32 half + 8 c + 4 word + 2 pair + element; n = 16 tile + 8 upper + g.
    split = numbers.view(k // TILE_INPUTS, 2, 4, 2, 2, 2, n // TILE_COLUMNS, 2, 8)
    words = torch.zeros(
        (n // TILE_COLUMNS, k // TILE_INPUTS, 8, 4, 2, 2), dtype=torch.int32, device=scales.device
    )
    for pair in range(2):
        for upper in range(2):
            for element in range(2):
                part = split[:, :, :, :, pair, element, :, upper]  # tile, half, c, word, tile, g
                shift = 4 * (2 * pair + upper) + 16 * element
                words |= part.permute(4, 0, 5, 2, 1, 3).to(torch.int32) << shift
    by_tile = scales.view(k // INT4_BLOCK, n // TILE_COLUMNS, 2, 8).permute(1, 0, 3, 2)
    packed = words.view(n // TILE_COLUMNS, k // TILE_INPUTS, 32, 4)
    return Int4Tiles(packed, by_tile.contiguous(), swiglu)
