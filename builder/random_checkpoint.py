"""A checkpoint that was never trained: random weights of a given model, made when asked for."""

from __future__ import annotations

import hashlib
import math
import zlib
from pathlib import Path

import torch

from trt_resa.builder.families import decoder
from trt_resa.builder.graph import Graph
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight
from trt_resa.model_config import ModelConfig
from trt_resa.network import INT4_BLOCK


class RandomCheckpoint:
    """A ``Checkpoint`` of ``model`` named ``name``, equal for equal names.

    Weights keep activations near one. ``int4`` stores every linear that fits in INT4, which spares
    a benchmark the quantization. Tensors are drawn on a GPU where there is one.
    """

    sliding_window: int | None = None

    def __init__(self, name: str, model: ModelConfig, dtype: str, int4: bool) -> None:
        self.path = Path(name)
        self.model, self.dtype = model, dtype
        self._int4 = int4
        graph = Graph(model, dtype, lambda modules, rows, k: None)
        decoder(graph, model)
        self._shapes = graph.shapes
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise CheckpointError(f"a random {self.model.model_type} has no tensor {name}")
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        shape, generator = self.shape(name), self._generator(name)
        values = torch.empty(shape, dtype=torch.float32, device=self._device)
        values.normal_(generator=generator)
        if len(shape) == 1:
            centre = 0.0 if name.endswith("bias") else 1.0
            values = centre + values / 8
        else:
            values /= math.sqrt(shape[1])
        return values.to(getattr(torch, self.dtype)).cpu()

    def int4_has_offsets(self, module: str) -> bool | None:
        return False if self._fits(module) else None

    def int4(self, module: str) -> Int4Weight | None:
        if not self._fits(module):
            return None
        n, k = self.shape(f"{module}.weight")
        generator = self._generator(module)
        size = (k, n // 2)
        packed = torch.randint(
            0, 256, size, generator=generator, dtype=torch.uint8, device=self._device
        )
        # Uniform numbers from -8 to 7 have an rms of 4.6.
        scales = torch.full((k // INT4_BLOCK, n), 1 / (4.6 * math.sqrt(k)))
        return Int4Weight(packed.cpu(), scales)

    def sha256(self) -> str:
        return hashlib.sha256(f"random {self.path} {self.model}".encode()).hexdigest()

    def save_tokenizer(self, directory: Path) -> None:
        """It has none: an engine of it takes token ids."""

    def largest_shard_bytes(self) -> int:
        return 0

    def _fits(self, module: str) -> bool:
        shape = self.shape(f"{module}.weight")
        inside = ".layers." in module and len(shape) == 2
        return self._int4 and inside and shape[1] % INT4_BLOCK == 0 and shape[0] % 2 == 0

    def _generator(self, name: str) -> torch.Generator:
        generator = torch.Generator(self._device)
        return generator.manual_seed(zlib.crc32(f"{self.path} {name}".encode()))
