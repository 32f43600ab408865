"""The INT4 storage against its definition, element by element in plain Python."""

from __future__ import annotations

import torch

from trt_resa.int4 import Int4Weight, dequantize, pack, unpack


def test_the_even_column_is_the_low_nibble():
    assert pack(torch.tensor([[1, -2], [-8, 7]], dtype=torch.int8)).tolist() == [[0xE1], [0x78]]


def test_unpack_undoes_pack_for_every_pair():
    values = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    assert torch.equal(unpack(pack(values)), values)
    assert unpack(pack(values)).dtype == torch.int8


def test_dequantize_is_the_documented_sum():
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-8, 8, (256, 6), generator=generator, dtype=torch.int8)
    scales = torch.rand(2, 6, generator=generator).half()
    offsets = torch.randn(2, 6, generator=generator).half()
    found = dequantize(Int4Weight(pack(q), scales, offsets))
    for k in range(256):
        for n in range(6):
            expected = q[k, n].float() * scales[k // 128, n].float() + offsets[k // 128, n].float()
            assert found[k, n] == expected
    without = dequantize(Int4Weight(pack(q), scales))
    assert torch.equal(without, q.float() * scales.float().repeat_interleave(128, 0))
