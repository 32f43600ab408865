"""Round-to-nearest quantization of a linear's weight to INT4."""

from __future__ import annotations

import torch

from trt_resa.int4 import Int4Weight, pack
from trt_resa.network import INT4_BLOCK

#: Rows quantized at once; even, and small enough that fp32 copies of them do not matter.
ROWS = 1024

LARGEST = 7


def quantize(weight: torch.Tensor, scale_dtype: torch.dtype) -> Int4Weight:
    """Symmetric INT4 of ``weight`` [N, K], blocks of 128 along K; N is even, K a multiple of 128.

    A block's largest magnitude maps to 7. Scales are rounded to ``scale_dtype`` before the weights
    are divided by them, so that |w - q * scale| <= scale / 2 up to one rounding of the scale.
    """
    n, k = weight.shape
    qweight = torch.empty(k, n // 2, dtype=torch.uint8)
    scales = torch.empty(k // INT4_BLOCK, n, dtype=scale_dtype)
    # A block of zeros, or of numbers below the scale's range, must not divide by zero.
    smallest = torch.finfo(scale_dtype).tiny
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        blocks = weight[rows].float().unflatten(1, (-1, INT4_BLOCK))
        scale = (blocks.abs().amax(-1) / LARGEST).clamp_min(smallest).to(scale_dtype)
        q = (blocks / scale.float()[..., None]).round_().clamp_(-8, 7).to(torch.int8)
        scales[:, rows] = scale.T
        qweight[:, rows.start // 2 : (rows.stop + 1) // 2] = pack(q.flatten(1).T)
    return Int4Weight(qweight, scales)
