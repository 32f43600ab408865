"""Safetensors files and what lies beside them, for every kind of checkpoint made of them.

No file stays open or mapped between calls.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trt_resa.errors import CheckpointError

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
class Entry:
    """Where a tensor lies, and what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


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


def read_header(file: Path) -> Iterator[tuple[str, Entry]]:
    """Name and entry of each tensor. Raises CheckpointError when the file is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                part = opened.get_slice(name)
                yield name, Entry(file, tuple(part.get_shape()), part.get_dtype())
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from None


def read_tensor(file: Path, name: str, rows: slice | None = None) -> torch.Tensor:
    """A tensor, or some of its rows, in memory of its own.

    What the library returns is backed by the mapped file, and would keep it.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            if rows is None:
                return opened.get_tensor(name).clone()
            return opened.get_slice(name)[rows].clone()
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from None


def headers_sha256(path: Path, files: Iterable[Path]) -> str:
    """Hash of a directory's configuration and of its files' names, sizes and headers."""
    digest = hashlib.sha256()
    for name in ("config.json", "generation_config.json"):
        if (path / name).is_file():
            digest.update((path / name).read_bytes())
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            header_size = opened.read(8)
            digest.update(header_size + opened.read(int.from_bytes(header_size, "little")))
    return digest.hexdigest()


def save_tokenizer(source: Path, directory: Path) -> None:
    """Copy the tokenizer files of ``source``; nothing where there are none."""
    present = [file for name in TOKENIZER_FILES if (file := source / name).is_file()]
    if (source / "tokenizer.json").is_file():
        for file in present:
            shutil.copyfile(file, directory / file.name)
    elif any(file.name in ("vocab.json", "tokenizer.model") for file in present):
        _convert_tokenizer(source, directory)


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
