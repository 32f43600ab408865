"""A checkpoint, whatever its files are: facts of the model, named tensors, tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch

from trt_resa.builder.gguf_checkpoint import GgufCheckpoint
from trt_resa.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trt_resa.builder.trtllm_checkpoint import RANK_FILES, TrtllmCheckpoint
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight
from trt_resa.model_config import ModelConfig


class Checkpoint(Protocol):
    """What the builder asks of a checkpoint.

    Tensor and module names are those of Hugging Face, e.g. ``model.layers.0.self_attn.q_proj`` and
    ``model.layers.0.self_attn.q_proj.weight``. Opening reads headers alone; no file stays open or
    mapped between calls. A method that takes a name raises CheckpointError when it is missing.
    """

    path: Path
    model: ModelConfig
    #: Element type of the stored weights: float32, float16 or bfloat16 (float16 for GGUF).
    dtype: str
    #: Tokens a sliding-window layer attends to; None when every layer attends to everything.
    sliding_window: int | None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the headers; an INT4 module's ``.weight`` is [N, K]."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored type, in memory of its own; quantized ones in fp32."""
        ...

    def int4_has_offsets(self, module: str) -> bool | None:
        """None for a module that is not stored in INT4, else whether a zero point is not 8."""
        ...

    def int4(self, module: str) -> Int4Weight | None:
        """The stored INT4 weight of a module, scales in fp32; None for a plain module."""
        ...

    def sha256(self) -> str:
        """Identifies the checkpoint without reading its weights.

        Covers the configuration and, of each weight file, its name, size and header: names, types,
        shapes and places of the tensors. Not the weights: two training states of one model with
        equal file layout have one hash.
        """
        ...

    def save_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer as Hugging Face saves it; nothing when the checkpoint has none."""
        ...

    def largest_shard_bytes(self) -> int: ...


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a Hugging Face directory with safetensors, a GGUF file or a directory
    holding one, or a TensorRT-LLM checkpoint of one rank.

    Raises CheckpointError when there is none, or it is damaged or of an unsupported kind.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"checkpoint {path} does not exist; give a directory with config.json and "
            "*.safetensors, or a .gguf file (a model of the Hugging Face hub has to be downloaded "
            "first)"
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"checkpoint {path} is a file but no .gguf; give the directory with config.json "
                "and *.safetensors"
            )
        return GgufCheckpoint(path)
    if any(path.glob(RANK_FILES)):
        return TrtllmCheckpoint(path)
    if any(path.glob("*.safetensors*")):
        return SafetensorsCheckpoint(path)
    gguf_files = sorted(path.glob("*.gguf"))
    if len(gguf_files) > 1:
        raise CheckpointError(
            f"checkpoint {path} holds {len(gguf_files)} GGUF files; give the path of one, such as "
            f"{gguf_files[0]}"
        )
    if gguf_files:
        return GgufCheckpoint(gguf_files[0])
    if any(path.glob("*.bin")) or any(path.glob("*.pth")):
        raise CheckpointError(
            f"checkpoint {path} has PyTorch .bin weights, which are not read; convert them to "
            "safetensors, e.g. AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR2)"
        )
    raise CheckpointError(
        f"checkpoint {path} holds no weights; give a directory with config.json and *.safetensors, "
        "or with one .gguf file"
    )
