"""Round-to-nearest: the error bound, and blocks that could divide by zero."""

from __future__ import annotations

import pytest
import torch

from trt_resa.builder import int4
from trt_resa.int4 import dequantize, unpack


def random(n, k, scale=0.05):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) * scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("n", "k"), [(2, 128), (66, 384), (2 * int4.ROWS + 6, 128)])
def test_the_error_is_at_most_half_a_scale(n, k, dtype):
    weight = random(n, k)
    quantized = int4.quantize(weight, dtype)
    assert quantized.scales.dtype == dtype
    assert quantized.offsets is None
    error = (dequantize(quantized) - weight.T).abs()
    scale = quantized.scales.float().repeat_interleave(128, 0)
    # A scale that was rounded down leaves the largest weight 7 roundings of the scale outside.
    rounding = 7 * scale * torch.finfo(dtype).eps
    assert (error <= scale / 2 + rounding).all()


def test_the_largest_weight_of_a_block_is_seven_scales():
    quantized = int4.quantize(random(4, 256), torch.float32)
    largest = unpack(quantized.qweight).abs().unflatten(0, (2, 128)).amax(1)
    assert (largest == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1e-9])
def test_blocks_of_nothing_stay_nothing(dtype, value):
    quantized = int4.quantize(torch.full((2, 128), value), dtype)
    assert quantized.scales.isfinite().all()
    assert (quantized.scales > 0).all()
    assert dequantize(quantized).abs().max() <= value + 1e-4


def test_bfloat16_weights_are_quantized_from_their_own_values():
    weight = random(8, 128).bfloat16()
    found = int4.quantize(weight, torch.float16)
    assert torch.equal(found.qweight, int4.quantize(weight.float(), torch.float16).qweight)
