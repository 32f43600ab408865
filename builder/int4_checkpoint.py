"""INT4 modules as AWQ (GEMM layout) and GPTQ store them, converted exactly.

Both pack eight unsigned nibbles u into an int32, with w = (u - zero) * scale per group of 128 input
columns; here q = u - 8 and offset = (8 - zero) * scale. K inputs, N outputs:

======  ================  ==================  =============================================
format  qweight           qzeros              nibble i, lowest bits first, is
======  ================  ==================  =============================================
awq     [K, N / 8]        [K / 128, N / 8]    column 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]
gptq    [K / 8, N]        [K / 128, N / 8]    row 8 r + i of qweight, column 8 c + i of qzeros
======  ================  ==================  =============================================

GPTQ's first format stores zero - 1, its ``gptq_v2`` the zero itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight, pack
from trt_resa.network import INT4_BLOCK

NIBBLES = 8
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LINEAR_ORDER = tuple(range(NIBBLES))

#: Reads a tensor of the checkpoint; None when there is none of that name.
Read = Callable[[str], "torch.Tensor | None"]


@dataclass(frozen=True)
class Int4Reader:
    """Reads the INT4 modules of one checkpoint."""

    path: Path
    awq: bool
    #: What a stored zero point lacks of the real one.
    zero_shift: int

    def shape(self, qweight: tuple[int, ...]) -> tuple[int, int]:
        """[N, K] of the module whose ``qweight`` has this shape."""
        rows, columns = qweight
        return (columns * NIBBLES, rows) if self.awq else (columns, rows * NIBBLES)

    def has_offsets(self, module: str, read: Read) -> bool:
        """Whether a zero point differs from 8. Raises CheckpointError on desc_act."""
        self._check_group_order(module, read)
        return bool((self._zeros(module, read) != 8).any())

    def read(self, module: str, read: Read) -> Int4Weight:
        """The module's weight, scales and offsets in fp32."""
        self._check_group_order(module, read)
        packed = self._need(f"{module}.qweight", read)
        unsigned = _nibbles(packed, AWQ_ORDER) if self.awq else _nibbles(packed.T, LINEAR_ORDER).T
        scales = self._need(f"{module}.scales", read).float()
        zeros = self._zeros(module, read)
        expected = (unsigned.shape[0] // INT4_BLOCK, unsigned.shape[1])
        for name, part in (("scales", scales), ("qzeros", zeros)):
            if tuple(part.shape) != expected or unsigned.shape[0] % INT4_BLOCK:
                raise CheckpointError(
                    f"checkpoint {self.path}: {module}.{name} unpacks to {list(part.shape)}, but "
                    f"the qweight of {list(unsigned.shape)} asks for {list(expected)}; groups "
                    f"of {INT4_BLOCK} inputs are supported"
                )
        offsets = (8 - zeros).float() * scales if (zeros != 8).any() else None
        return Int4Weight(pack(unsigned - 8), scales, offsets)

    def _zeros(self, module: str, read: Read) -> torch.Tensor:
        """int8 zero points, [K / 128, N]; the shift wraps within a nibble, as it did on storing."""
        packed = self._need(f"{module}.qzeros", read)
        stored = _nibbles(packed, AWQ_ORDER if self.awq else LINEAR_ORDER)
        return (stored + self.zero_shift) & 0xF

    def _check_group_order(self, module: str, read: Read) -> None:
        order = read(f"{module}.g_idx")
        if order is None:
            return
        if not torch.equal(order.long(), torch.arange(len(order)) // INT4_BLOCK):
            raise CheckpointError(
                f"checkpoint {self.path}: {module} was quantized with desc_act, whose order of "
                "groups is not supported; use a checkpoint quantized with desc_act=false"
            )

    def _need(self, name: str, read: Read) -> torch.Tensor:
        tensor = read(name)
        if tensor is None:
            raise CheckpointError(
                f"checkpoint {self.path} has no tensor {name}; download the checkpoint again"
            )
        return tensor


def int4_reader(config: Mapping[str, Any], path: Path) -> Int4Reader | None:
    """The reader that ``quantization_config`` of a config.json asks for; None without one.

    Raises CheckpointError when the quantization is not supported. ``modules_to_not_convert`` needs
    no reading: those modules are plain tensors in the files.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    if not isinstance(quantization, Mapping):
        raise CheckpointError(f"checkpoint {path}: quantization_config must hold keys and values")
    method = quantization.get("quant_method")
    allowed: tuple[str, ...]
    if method == "awq":
        layout = str(quantization.get("version") or quantization.get("format") or "gemm").lower()
        allowed, reader = ("gemm",), Int4Reader(path, awq=True, zero_shift=0)
    elif method == "gptq":
        layout = quantization.get("checkpoint_format") or "gptq"
        shift = 1 if layout == "gptq" else 0
        allowed, reader = ("gptq", "gptq_v2"), Int4Reader(path, awq=False, zero_shift=shift)
    else:
        raise CheckpointError(
            f"checkpoint {path} is quantized with {method!r}, which is not supported; supported "
            "are awq, gptq and unquantized checkpoints"
        )
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    group = quantization.get("group_size", quantization.get("q_group_size", INT4_BLOCK))
    if bits != 4 or group != INT4_BLOCK:
        raise CheckpointError(
            f"checkpoint {path} is quantized to {bits} bits with group_size {group}; supported are "
            f"4 bits with group_size {INT4_BLOCK}"
        )
    if layout not in allowed:
        raise CheckpointError(
            f"checkpoint {path} has the {method} layout {layout!r}; supported are "
            f"{', '.join(allowed)}"
        )
    if quantization.get("dynamic"):
        raise CheckpointError(
            f"checkpoint {path} has GPTQ settings per module (dynamic), which are not supported; "
            "use one quantized alike throughout"
        )
    return reader


def _nibbles(packed: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """int8 [rows, 8 C] in [0, 15] of int32 [rows, C]: nibble i goes to column 8 c + order[i]."""
    rows, columns = packed.shape
    unpacked = torch.empty(rows, columns, NIBBLES, dtype=torch.int8)
    for i, column in enumerate(order):
        unpacked[..., column] = (packed >> (4 * i)) & 0xF
    return unpacked.flatten(1)
