"""Makes the tensors of a network from those of its checkpoint, a few at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from trt_resa.builder import int4
from trt_resa.config import BuildConfig
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight
from trt_resa.network import Weight

if TYPE_CHECKING:
    from trt_resa.builder.checkpoint import Checkpoint
    from trt_resa.builder.families import Description

INT4_PARTS = ("qweight", "scales", "offsets")


def resolve_dtype(checkpoint: Checkpoint, build: BuildConfig) -> str:
    """Element type of the network; ``auto`` is the checkpoint's, float32 becoming float16."""
    if build.dtype != "auto":
        return build.dtype
    return "float16" if checkpoint.dtype == "float32" else checkpoint.dtype


class WeightLoader:
    """Loads weights of a network; holds no tensor and no open file between calls."""

    def __init__(
        self, checkpoint: Checkpoint, description: Description, build: BuildConfig
    ) -> None:
        self._checkpoint = checkpoint
        self._sources = description.sources
        self._shapes = description.shapes
        self._dtype_name = resolve_dtype(checkpoint, build)
        self._dtype: torch.dtype = getattr(torch, self._dtype_name)

    def load(self, weights: Iterable[Weight]) -> dict[str, torch.Tensor]:
        """Contiguous CPU tensors by name, each of exactly the shape and element type of its Weight.

        Peak memory is that of the result and of two copies of its largest checkpoint tensor.
        Raises CheckpointError when a tensor is missing, has another shape than its configuration
        promises, or holds NaN, Inf or a number beyond the network's element type.
        """
        wanted = list(weights)
        loaded: dict[str, torch.Tensor] = {}
        for weight in wanted:
            if weight.name in loaded:
                continue
            module, _, part = weight.name.rpartition(".")
            if part in INT4_PARTS:
                loaded |= self._int4(module, self._sources[weight.name])
            else:
                loaded[weight.name] = self._concatenated(weight, self._sources[weight.name])
        return {weight.name: loaded[weight.name] for weight in wanted}

    def _concatenated(self, weight: Weight, names: tuple[str, ...]) -> torch.Tensor:
        result = torch.empty(weight.shape, dtype=self._dtype)
        start = 0
        for name in names:
            part = self._tensor(name)
            result[start : start + len(part)].copy_(part)
            start += len(part)
        return result

    def _int4(self, module: str, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The INT4 linear ``module``, its sources side by side along N."""
        parts = [self._int4_part(name) for name in names]
        result = {
            f"{module}.qweight": torch.cat([part.qweight for part in parts], dim=1),
            f"{module}.scales": torch.cat([part.scales for part in parts], dim=1),
        }
        if any(part.offsets is not None for part in parts):
            offsets = [
                torch.zeros_like(part.scales) if part.offsets is None else part.offsets
                for part in parts
            ]
            result[f"{module}.offsets"] = torch.cat(offsets, dim=1)
        return result

    def _int4_part(self, name: str) -> Int4Weight:
        stored = self._checkpoint.int4(name.removesuffix(".weight"))
        if stored is None:
            return int4.quantize(self._tensor(name), self._dtype)
        for tensor in (stored.scales, stored.offsets):
            if tensor is not None:
                self._check_range(tensor, f"{name.removesuffix('.weight')}.scales")
        offsets = None if stored.offsets is None else stored.offsets.to(self._dtype)
        return Int4Weight(stored.qweight, stored.scales.to(self._dtype), offsets)

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        if tuple(tensor.shape) != self._shapes[name]:
            raise CheckpointError(
                f"checkpoint {self._checkpoint.path}: tensor {name} has shape "
                f"{list(tensor.shape)} instead of {list(self._shapes[name])}"
            )
        self._check_range(tensor, name)
        return tensor

    def _check_range(self, tensor: torch.Tensor, name: str) -> None:
        """Only the extremes are looked at: they carry a NaN, and need no copy of the tensor."""
        low, high = (bound.item() for bound in torch.aminmax(tensor))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise CheckpointError(
                f"checkpoint {self._checkpoint.path}: tensor {name} holds NaN or Inf; download the "
                "checkpoint again"
            )
        largest = torch.finfo(self._dtype).max
        if max(-low, high) > largest:
            raise CheckpointError(
                f"checkpoint {self._checkpoint.path}: tensor {name} holds {max(-low, high):g}, "
                f"beyond {self._dtype_name}'s {largest:g}; build with --dtype bfloat16"
            )
