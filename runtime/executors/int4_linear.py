"""The kernels of ``kernel_segments`` as functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F

from trt_resa.int4 import Int4Weight
from trt_resa.int4_tiles import pack_tiles
from trt_resa.kernel_params import Int4LinearParams, Int4UnpackParams, KernelDtype, RmsNormParams
from trt_resa.kernels import KernelLibrary


def kernel_dtype(dtype: torch.dtype) -> KernelDtype:
    return KernelDtype[str(dtype).removeprefix("torch.").upper()]


class Int4Linear:
    """x @ W.T + bias, then SwiGLU of the two halves or a sum with ``residual``.

    ``weights`` by role, symmetric INT4; they are packed into tiles here, and ``room`` for ``size``
    elements is needed before more than ``MOST_ROWS`` rows come.
    """

    #: A launch reads all weights for 32 rows; from here on unpacking them for a GEMM is faster.
    ROWS_PER_LAUNCH: ClassVar[int] = 32
    MOST_ROWS: ClassVar[int] = 128

    def __init__(
        self, weights: Mapping[str, torch.Tensor], swiglu: bool, library: KernelLibrary
    ) -> None:
        self.tiles = pack_tiles(Int4Weight(weights["qweight"], weights["scales"]), swiglu)
        self.size = self.tiles.in_columns * self.tiles.out_columns
        self.room: torch.Tensor | None = None
        self._bias, self._library = weights.get("bias"), library

    def __call__(
        self,
        x: torch.Tensor,
        out: torch.Tensor | None,
        residual: torch.Tensor | None,
        stream: int,
    ) -> torch.Tensor:
        """[T, K] to [T, N] or [T, N / 2], into ``out`` where it is given."""
        tiles = self.tiles
        if out is None:
            width = tiles.out_columns // 2 if tiles.swiglu else tiles.out_columns
            out = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
        if len(x) > self.MOST_ROWS:
            self._gemm(x, out, residual, stream)
            return out
        for start in range(0, len(x), self.ROWS_PER_LAUNCH):
            rows = slice(start, start + self.ROWS_PER_LAUNCH)
            params = Int4LinearParams(
                x=x[rows].data_ptr(),
                weight=tiles.weight.data_ptr(),
                scales=tiles.scales.data_ptr(),
                bias=None if self._bias is None else self._bias.data_ptr(),
                residual=None if residual is None else residual[rows].data_ptr(),
                out=out[rows].data_ptr(),
                num_rows=len(x[rows]),
                in_columns=tiles.in_columns,
                out_columns=tiles.out_columns,
                swiglu=int(tiles.swiglu),
                dtype=kernel_dtype(x.dtype),
            )
            self._library.launch(params, stream)
        return out

    def _gemm(
        self, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None, stream: int
    ) -> None:
        tiles = self.tiles
        assert self.room is not None
        params = Int4UnpackParams(
            weight=tiles.weight.data_ptr(),
            scales=tiles.scales.data_ptr(),
            out=self.room.data_ptr(),
            in_columns=tiles.in_columns,
            out_columns=tiles.out_columns,
            swiglu=int(tiles.swiglu),
            dtype=kernel_dtype(x.dtype),
        )
        self._library.launch(params, stream)
        weight = self.room[: self.size].view(tiles.out_columns, tiles.in_columns)
        y = F.linear(x, weight, self._bias)
        if tiles.swiglu:
            gate, up = y.chunk(2, dim=-1)
            torch.mul(F.silu(gate), up, out=out)
        elif residual is not None:
            torch.add(residual, y, out=out)
        else:
            out.copy_(y)


class RmsNorm:
    """x / rms(x) times a weight, in the weight's type; of a residual stream in fp32 by PyTorch."""

    def __init__(self, weight: torch.Tensor, eps: float, library: KernelLibrary) -> None:
        self._weight, self._eps, self._library = weight, eps, library
        self._wide_weight = weight.float()

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None, stream: int) -> torch.Tensor:
        out = torch.empty_like(x, dtype=self._weight.dtype) if out is None else out
        if x.dtype == torch.float32:
            return out.copy_(F.rms_norm(x, x.shape[1:], self._wide_weight, self._eps))
        params = RmsNormParams(
            x=x.data_ptr(),
            weight=self._weight.data_ptr(),
            out=out.data_ptr(),
            num_rows=len(x),
            columns=x.shape[1],
            dtype=kernel_dtype(x.dtype),
            eps=self._eps,
        )
        self._library.launch(params, stream)
        return out
