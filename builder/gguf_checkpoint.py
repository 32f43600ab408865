"""A GGUF file of llama.cpp: its metadata read as a config.json, its tensors dequantized one by one.

llama.cpp stores the q and k rows of its ``llama`` architecture so that the two halves of a rotary
pair are neighbours; Hugging Face keeps the halves apart. Reading undoes that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from trt_resa.builder.gguf_metadata import EOS_KEYS, hf_config
from trt_resa.builder.hf_config import eos_token_ids, model_config, sliding_window
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight

#: Rows dequantized at once; the library's fp32 temporaries are a few times that large.
ROWS = 4096

FLOAT_TYPES = {
    gguf.GGMLQuantizationType.F32: np.float32,
    gguf.GGMLQuantizationType.F16: np.float16,
}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies in the file; ``shape`` is in PyTorch's order."""

    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType


class GgufCheckpoint:
    """Implements ``trt_resa.builder.checkpoint.Checkpoint``."""

    #: GGUF types have fp16 scales at best.
    dtype = "float16"

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata, self._entries, self._header_bytes = _read_header(path)
        self._has_tokenizer = "tokenizer.ggml.model" in metadata
        shapes = {name: entry.shape for name, entry in self._entries.items()}
        factors = "rope_freqs.weight"
        rope_factors = self._read(factors) if factors in self._entries else None
        config = hf_config(metadata, shapes, rope_factors, path)
        eos = {"eos_token_id": list(dict.fromkeys(metadata[k] for k in EOS_KEYS if k in metadata))}
        self.model = model_config(config, eos_token_ids(eos), path)
        self.sliding_window = sliding_window(config)
        self._permuted = metadata["general.architecture"] == "llama"
        self._names = gguf.get_tensor_name_map(
            getattr(gguf.MODEL_ARCH, metadata["general.architecture"].upper()),
            self.model.num_layers,
        )

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[self._gguf_name(name)].shape

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._read(self._gguf_name(name))
        if self._permuted and ".self_attn.q_proj." in name:
            return _unpermute(tensor, self.model.num_heads)
        if self._permuted and ".self_attn.k_proj." in name:
            return _unpermute(tensor, self.model.num_kv_heads)
        return tensor

    def int4_has_offsets(self, module: str) -> bool | None:
        self._gguf_name(f"{module}.weight")
        return None

    def int4(self, module: str) -> Int4Weight | None:
        self._gguf_name(f"{module}.weight")
        return None

    def sha256(self) -> str:
        digest = hashlib.sha256(f"{self.path.name}:{self.path.stat().st_size}\n".encode())
        with self.path.open("rb") as opened:
            digest.update(opened.read(self._header_bytes))
        return digest.hexdigest()

    def save_tokenizer(self, directory: Path) -> None:
        if not self._has_tokenizer:
            return
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
            tokenizer.save_pretrained(directory)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"the tokenizer of {self.path} cannot be converted ({reason}); put the tokenizer "
                "files of the original model into the engine directory"
            ) from None

    def largest_shard_bytes(self) -> int:
        return self.path.stat().st_size

    def _gguf_name(self, name: str) -> str:
        found: str | None = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found not in self._entries:
            raise CheckpointError(
                f"checkpoint {self.path} has no tensor {found or name} ({name}), which a "
                f"{self.model.model_type} model needs; download the file again"
            )
        return found

    def _read(self, gguf_name: str) -> torch.Tensor:
        """The tensor in fp32. Read, not mapped: mapped pages would stay and count as memory."""
        entry = self._entries[gguf_name]
        raw = np.fromfile(self.path, np.uint8, entry.num_bytes, offset=entry.offset)
        if entry.type in FLOAT_TYPES:
            values = raw.view(FLOAT_TYPES[entry.type]).astype(np.float32, copy=False)
            return torch.from_numpy(values.reshape(entry.shape))
        result = np.empty(entry.shape, np.float32)
        rows = raw.reshape(entry.shape[0], -1)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            try:
                result[start : start + ROWS] = gguf.quants.dequantize(part, entry.type)
            except NotImplementedError:
                raise CheckpointError(
                    f"checkpoint {self.path}: tensor {gguf_name} has the type {entry.type.name}, "
                    "which the gguf package cannot dequantize; use a file of another quantization"
                ) from None
        return torch.from_numpy(result)


class _BoundedReader(gguf.GGUFReader):
    """The library's reader, stopped at the end of the file.

    The library reads nothing behind the end and goes on, so a damaged count of array elements would
    make it loop until the memory is full.
    """

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it has {len(self.data)} bytes and refers to byte {end}")
        return super()._get(offset, dtype, count, override_order)


def _read_header(path: Path) -> tuple[Mapping[str, Any], dict[str, _Entry], int]:
    """Metadata, tensors and header size; the mapping of the file ends with this function.

    The library reads a damaged file as far as it can and then raises what its parser stumbles on.
    """
    try:
        reader = _BoundedReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole GGUF file ({error or type(error).__name__}); download it again"
        ) from None
    entries = {
        tensor.name: _Entry(
            int(tensor.data_offset),
            int(tensor.n_bytes),
            tuple(int(size) for size in reversed(tensor.shape)),
            tensor.tensor_type,
        )
        for tensor in reader.tensors
    }
    size = path.stat().st_size
    for name, entry in entries.items():
        if entry.offset + entry.num_bytes > size:
            raise CheckpointError(
                f"{path} ends within tensor {name}; the file is truncated, download it again"
            )
    return metadata, entries, int(reader.data_offset)


def _unpermute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from pairs side by side back to two halves; weights and biases alike."""
    pairs = tensor.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).reshape(tensor.shape)
