"""Writes AWQ and GPTQ checkpoints from plain ones, one element at a time from their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import edit_config

GROUP = 128
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Column of eight that nibble i of an AWQ word holds.
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Quantized:
    """Unsigned nibbles [K, N], zero points [K / 128, N] and fp16 scales [K / 128, N]."""

    nibbles: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray

    def values(self) -> np.ndarray:
        """W.T in fp32."""
        zeros = self.zeros.repeat(GROUP, 0).astype(np.float32)
        return (self.nibbles.astype(np.float32) - zeros) * self.scales.astype(np.float32).repeat(
            GROUP, 0
        )


def random_quantized(rng: np.random.Generator, k: int, n: int, symmetric: bool) -> Quantized:
    zeros = np.full((k // GROUP, n), 8) if symmetric else rng.integers(0, 16, (k // GROUP, n))
    scales = rng.uniform(0.001, 0.02, (k // GROUP, n)).astype(np.float16)
    return Quantized(rng.integers(0, 16, (k, n)), zeros, scales)


def quantize_checkpoint(
    path: Path,
    method: str,
    symmetric: bool = False,
    skip: tuple[str, ...] = (),
    **config: Any,
) -> dict[str, Quantized]:
    """Replace the linears of a checkpoint of one file by random quantized ones; returns those.

    ``method``: awq, gptq or gptq_v2; modules whose name contains a part in ``skip`` stay plain.
    ``config`` changes keys of quantization_config.
    """
    rng = np.random.default_rng(7)
    tensors = load_file(path / "model.safetensors")
    quantized: dict[str, Quantized] = {}
    for name in list(tensors):
        module = name.removesuffix(".weight")
        if not module.endswith(LINEARS) or any(part in module for part in skip):
            continue
        n, k = tensors.pop(name).shape
        quantized[module] = random_quantized(rng, k, n, symmetric)
        tensors |= {f"{module}.{key}": t for key, t in stored(quantized[module], method).items()}
    save_file(tensors, path / "model.safetensors")
    common = {"bits": 4, "group_size": GROUP}
    if method == "awq":
        common |= {"quant_method": "awq", "version": "gemm", "zero_point": not symmetric}
    else:
        common |= {"quant_method": "gptq", "checkpoint_format": method, "desc_act": False}
    edit_config(path, quantization_config=common | config, dtype="float16")
    return quantized


def stored(weight: Quantized, method: str) -> dict[str, torch.Tensor]:
    k = len(weight.nibbles)
    if method == "awq":
        parts = {
            "qweight": pack_columns(weight.nibbles, AWQ_COLUMNS),
            "qzeros": pack_columns(weight.zeros, AWQ_COLUMNS),
        }
    else:
        zeros = weight.zeros - 1 if method == "gptq" else weight.zeros
        parts = {
            "qweight": pack_columns(weight.nibbles.T, range(8)).T,
            "qzeros": pack_columns(zeros & 0xF, range(8)),
            "g_idx": np.arange(k, dtype=np.int32) // GROUP,
        }
    tensors = {key: torch.from_numpy(np.ascontiguousarray(part)) for key, part in parts.items()}
    return tensors | {"scales": torch.from_numpy(weight.scales)}


def pack_columns(values: np.ndarray, columns: Any) -> np.ndarray:
    """int32 [rows, N / 8]: nibble i of word c holds column 8 c + columns[i]."""
    rows, n = values.shape
    packed = np.zeros((rows, n // 8), np.uint32)
    for row in range(rows):
        for word in range(n // 8):
            for i, column in enumerate(columns):
                packed[row, word] |= np.uint32(int(values[row, 8 * word + column]) << (4 * i))
    return packed.view(np.int32)
