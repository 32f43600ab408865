"""A Hugging Face directory: config.json, safetensors files, tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from trt_resa.builder.hf_config import eos_token_ids, model_config, sliding_window
from trt_resa.builder.int4_checkpoint import Int4Reader, int4_reader
from trt_resa.builder.safetensors_files import (
    FLOAT_TYPES,
    Entry,
    headers_sha256,
    read_header,
    read_json,
    read_tensor,
    save_tokenizer,
)
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight, dequantize

INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    """Implements ``trt_resa.builder.checkpoint.Checkpoint``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_json(path / "config.json", required=True)
        generation = read_json(path / "generation_config.json", required=False)
        self.model = model_config(config, eos_token_ids(generation, config), path)
        self.sliding_window = sliding_window(config)
        self._files = tuple(_weight_files(path))
        self._entries = {name: entry for file in self._files for name, entry in read_header(file)}
        self._int4: Int4Reader | None = int4_reader(config, path)
        self.dtype = self._stored_dtype()

    def _stored_dtype(self) -> str:
        """The embedding's element type: no quantization touches it."""
        return FLOAT_TYPES[self._float_entry("model.embed_tokens.weight").dtype]

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(
                f"checkpoint {self.path} has no tensor {name}, which a {self.model.model_type} "
                "model needs; download the checkpoint again, or check that it is of this model type"
            )
        return self._entries[name]

    def _float_entry(self, name: str) -> Entry:
        entry = self._entry(name)
        if entry.dtype not in FLOAT_TYPES:
            raise CheckpointError(
                f"checkpoint {self.path}: tensor {name} has element type {entry.dtype}; allowed "
                f"are {', '.join(FLOAT_TYPES)}, and AWQ or GPTQ modules of 4 bits"
            )
        return entry

    def _int4_module(self, module: str) -> Int4Reader | None:
        return self._int4 if f"{module}.qweight" in self._entries else None

    def shape(self, name: str) -> tuple[int, ...]:
        module, _, kind = name.rpartition(".")
        reader = self._int4_module(module)
        if kind == "weight" and reader:
            return reader.shape(self._entry(f"{module}.qweight").shape)
        return self._float_entry(name).shape

    def tensor(self, name: str) -> torch.Tensor:
        module, _, kind = name.rpartition(".")
        weight = self.int4(module) if kind == "weight" else None
        if weight is not None:
            return dequantize(weight).T.contiguous()
        self._float_entry(name)
        return self._read(name)

    def int4_has_offsets(self, module: str) -> bool | None:
        reader = self._int4_module(module)
        return None if reader is None else reader.has_offsets(module, self._read_optional)

    def int4(self, module: str) -> Int4Weight | None:
        reader = self._int4_module(module)
        return None if reader is None else reader.read(module, self._read_optional)

    def _read_optional(self, name: str) -> torch.Tensor | None:
        return self._read(name) if name in self._entries else None

    def _read(self, name: str) -> torch.Tensor:
        return read_tensor(self._entry(name).file, name)

    def sha256(self) -> str:
        return headers_sha256(self.path, self._files)

    def save_tokenizer(self, directory: Path) -> None:
        save_tokenizer(self.path, directory)

    def largest_shard_bytes(self) -> int:
        return max(file.stat().st_size for file in self._files)


def _weight_files(path: Path) -> Iterator[Path]:
    """The files that the index names, or else every safetensors file of the directory."""
    if not (path / INDEX).is_file():
        yield from sorted(path.glob("*.safetensors"))
        return
    shards = read_json(path / INDEX, required=True).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path / INDEX} has no weight_map; download the checkpoint again")
    for name in sorted(set(map(str, shards.values()))):
        if not (path / name).is_file():
            raise CheckpointError(
                f"checkpoint {path} lacks {name}, which {INDEX} names; download it again"
            )
        yield path / name
