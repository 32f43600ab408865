"""A Hugging Face directory: config.json, safetensors files, tokenizer files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trt_resa.builder.hf_config import eos_token_ids, model_config, sliding_window
from trt_resa.builder.int4_checkpoint import Int4Reader, int4_reader
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight, dequantize

INDEX = "model.safetensors.index.json"

#: Names in a safetensors header of the element types that a weight may have.
FLOAT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies, and what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class SafetensorsCheckpoint:
    """Implements ``trt_resa.builder.checkpoint.Checkpoint``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_json(path / "config.json", required=True)
        generation = read_json(path / "generation_config.json", required=False)
        self.model = model_config(config, eos_token_ids(generation, config), path)
        self.sliding_window = sliding_window(config)
        self._files = tuple(_weight_files(path))
        self._entries = {name: entry for file in self._files for name, entry in _read_header(file)}
        self._int4: Int4Reader | None = int4_reader(config, path)
        self.dtype = self._stored_dtype()

    def _stored_dtype(self) -> str:
        """The embedding's element type: no quantization touches it."""
        return FLOAT_TYPES[self._float_entry("model.embed_tokens.weight").dtype]

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(
                f"checkpoint {self.path} has no tensor {name}, which a {self.model.model_type} "
                "model needs; download the checkpoint again, or check that it is of this model type"
            )
        return self._entries[name]

    def _float_entry(self, name: str) -> _Entry:
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
        """A copy: what the library returns is backed by the mapped file, and would keep it."""
        file = self._entry(name).file
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise _unreadable(file, error) from None

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name in ("config.json", "generation_config.json"):
            if (self.path / name).is_file():
                digest.update((self.path / name).read_bytes())
        for file in self._files:
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
            with file.open("rb") as opened:
                header_size = opened.read(8)
                digest.update(header_size + opened.read(int.from_bytes(header_size, "little")))
        return digest.hexdigest()

    def save_tokenizer(self, directory: Path) -> None:
        present = [file for name in TOKENIZER_FILES if (file := self.path / name).is_file()]
        if (self.path / "tokenizer.json").is_file():
            for file in present:
                shutil.copyfile(file, directory / file.name)
        elif any(file.name in ("vocab.json", "tokenizer.model") for file in present):
            _convert_tokenizer(self.path, directory)

    def largest_shard_bytes(self) -> int:
        return max(file.stat().st_size for file in self._files)


def read_json(path: Path, required: bool) -> dict[str, Any]:
    """The mapping in a JSON file; empty when the file is absent and not required."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise CheckpointError(
            f"checkpoint {path.parent} has no {path.name}; give the directory of a Hugging Face "
            "model"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); download the checkpoint again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


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


def _read_header(file: Path) -> Iterator[tuple[str, _Entry]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                part = opened.get_slice(name)
                yield name, _Entry(file, tuple(part.get_shape()), part.get_dtype())
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file} is no whole safetensors file ({error}); download the checkpoint again"
    )


def _convert_tokenizer(source: Path, directory: Path) -> None:
    """Files of a tokenizer without tokenizer.json, converted by Hugging Face."""
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the tokenizer of {source} cannot be converted ({reason}); add its tokenizer.json"
        ) from None
