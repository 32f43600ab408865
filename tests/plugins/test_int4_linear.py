"""int4_linear, int4_unpack and rms_norm against plain torch in double precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from trt_resa.int4 import Int4Weight, dequantize, pack  # noqa: E402 (after importorskip)
from trt_resa.int4_tiles import Int4Tiles, pack_tiles  # noqa: E402
from trt_resa.kernel_params import (  # noqa: E402
    Int4LinearParams,
    Int4UnpackParams,
    KernelDtype,
    RmsNormParams,
    Status,
)
from trt_resa.kernels import KernelLaunchError  # noqa: E402

DTYPES = {torch.float16: KernelDtype.FLOAT16, torch.bfloat16: KernelDtype.BFLOAT16}
#: Half a unit in the last place of the result, and what fp32 sums in another order add.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
ADDRESS = 1 << 20


def random_weight(k: int, n: int, dtype, device: str = "cpu") -> Int4Weight:
    values = torch.randint(-8, 8, (k, n), device=device)
    scales = (torch.rand(k // 128, n, device=device) + 0.5) / (4.6 * k**0.5)
    return Int4Weight(pack(values), scales.to(dtype))


def number_at(tiles: Int4Tiles, column: int, k: int) -> int:
    """q of a column of the packed product, found by the rule of the header."""
    r, inputs = column % 16, k % 64
    g, c = r % 8, inputs % 32 // 8
    word = 2 * (inputs // 32) + inputs % 8 // 4
    i = 2 * (inputs % 4 // 2) + r // 8
    bits = int(tiles.weight[column // 16, k // 64, 4 * g + c, word]) & 0xFFFFFFFF
    return (bits >> (4 * i + 16 * (inputs % 2)) & 0xF) - 8


@pytest.mark.parametrize("swiglu", [False, True])
def test_tiles_hold_every_number_where_the_header_says(swiglu):
    k, n = 256, 48
    weight = random_weight(k, n, torch.float16)
    tiles = pack_tiles(weight, swiglu)
    whole = dequantize(Int4Weight(weight.qweight, torch.ones(k // 128, n)))
    assert (tiles.in_columns, tiles.out_columns) == (k, n)
    for column in range(n):
        r, tile = column % 16, column // 16
        original = column if not swiglu else 8 * tile + r % 8 + (r // 8) * (n // 2)
        for block in range(k // 128):
            scale = tiles.scales[tile, block, r % 8, r // 8]
            assert scale == weight.scales[block, original]
        assert [number_at(tiles, column, i) for i in range(k)] == whole[:, original].tolist()


def assert_close(actual, expected) -> None:
    assert not actual.isnan().any()
    error = float((actual.double() - expected).norm() / expected.norm())
    assert error <= TOLERANCE[actual.dtype], error
    worst = float((actual.double() - expected).abs().max() / expected.abs().max())
    assert worst <= 4 * TOLERANCE[actual.dtype], worst


def run(library, x, weight, *, swiglu=False, bias=None, residual=None):
    tiles = pack_tiles(weight, swiglu)
    width = tiles.out_columns // (2 if swiglu else 1)
    out = torch.full((len(x), width), float("nan"), dtype=x.dtype, device=x.device)
    params = Int4LinearParams(
        x=x.data_ptr(),
        weight=tiles.weight.data_ptr(),
        scales=tiles.scales.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        residual=None if residual is None else residual.data_ptr(),
        out=out.data_ptr(),
        num_rows=len(x),
        in_columns=tiles.in_columns,
        out_columns=tiles.out_columns,
        swiglu=int(swiglu),
        dtype=DTYPES[x.dtype],
    )
    library.launch(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return out


def expected(x, weight, swiglu=False, bias=None, residual=None):
    y = x.double() @ dequantize(weight).double()
    if bias is not None:
        y += bias.double()
    if swiglu:
        gate, up = y.chunk(2, dim=-1)
        y = gate * gate.sigmoid() * up
    return y if residual is None else y + residual.double()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 31, 32])
@pytest.mark.parametrize(
    ("k", "n"), [(128, 16), (256, 48), (896, 4608), (3584, 208), (1152, 16400)]
)
def test_products(library, dtype, rows, k, n):
    torch.manual_seed(rows * n)
    x = torch.randn(rows, k, device="cuda").to(dtype)
    weight = random_weight(k, n, dtype, "cuda")
    assert_close(run(library, x, weight), expected(x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 16, 32])
@pytest.mark.parametrize("swiglu", [False, True])
def test_bias_residual_and_swiglu(library, dtype, rows, swiglu):
    torch.manual_seed(rows)
    k, n = 512, 1056
    x, bias = (torch.randn(size, device="cuda").to(dtype) for size in ((rows, k), (n,)))
    residual = torch.randn(rows, n // 2 if swiglu else n, device="cuda").to(dtype)
    weight = random_weight(k, n, dtype, "cuda")
    for more in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
        assert_close(
            run(library, x, weight, swiglu=swiglu, **more), expected(x, weight, swiglu, **more)
        )


@pytest.mark.gpu
def test_equal_inputs_give_equal_bits(library):
    x = torch.randn(32, 4096, device="cuda").half()
    weight = random_weight(4096, 1024, torch.float16, "cuda")
    first = run(library, x, weight)
    assert all(torch.equal(run(library, x, weight), first) for _ in range(5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("swiglu", [False, True])
def test_unpacked_weights(library, dtype, swiglu):
    k, n = 384, 1072
    weight = random_weight(k, n, dtype, "cuda")
    tiles = pack_tiles(weight, swiglu)
    out = torch.full((n, k), float("nan"), dtype=dtype, device="cuda")
    params = Int4UnpackParams(
        weight=tiles.weight.data_ptr(),
        scales=tiles.scales.data_ptr(),
        out=out.data_ptr(),
        in_columns=k,
        out_columns=n,
        swiglu=int(swiglu),
        dtype=DTYPES[dtype],
    )
    library.launch(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(out, dequantize(weight).T.to(dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [8, 64, 3584, 4096, 16392, 24576])
def test_rms_norm(library, dtype, columns):
    x, weight = (torch.randn(size, device="cuda").to(dtype) for size in ((5, columns), (columns,)))
    out = torch.full_like(x, float("nan"))
    params = RmsNormParams(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        out=out.data_ptr(),
        num_rows=5,
        columns=columns,
        dtype=DTYPES[dtype],
        eps=1e-5,
    )
    library.launch(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    wide = x.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_close(out, normed)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"num_rows": 33}, Status.BAD_EXTENT),
        ({"num_rows": -1}, Status.BAD_EXTENT),
        ({"in_columns": 64}, Status.BAD_EXTENT),
        ({"out_columns": 24}, Status.BAD_EXTENT),
        ({"swiglu": 2}, Status.BAD_EXTENT),
        ({"dtype": 2}, Status.BAD_DTYPE),
        ({"x": None}, Status.NULL_POINTER),
        ({"residual": ADDRESS + 8}, Status.MISALIGNED_POINTER),
    ],
)
def test_refusals(library, changes, status):
    pointers = dict.fromkeys(("x", "weight", "scales", "bias", "residual", "out"), ADDRESS)
    extents = {"num_rows": 4, "in_columns": 256, "out_columns": 32, "swiglu": 0, "dtype": 0}
    with pytest.raises(KernelLaunchError) as refused:
        library.launch(Int4LinearParams(**pointers | extents | changes))
    assert refused.value.status == status
