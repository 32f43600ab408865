"""A TensorRT-LLM checkpoint, as its convert_checkpoint.py scripts write it for one rank.

config.json and rank0.safetensors, unquantized. The q, k and v rows of a layer are one tensor. In
the MLP, ``fc`` is what the activation is applied to, Hugging Face's ``gate_proj``; its ``up_proj``
is called ``gate``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trt_resa.builder.hf_config import eos_token_ids, model_config
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
from trt_resa.int4 import Int4Weight

_logger = logging.getLogger(__name__)

RANK_FILES = "rank*.safetensors"
WEIGHTS = "rank0.safetensors"

#: ``model_type`` by ``architecture``; QWenForCausalLM has it in ``qwen_type``.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
QWEN = "QWenForCausalLM"

#: Keys of a Hugging Face config.json by TensorRT-LLM's; other keys have one name in both.
RENAMED = {
    "norm_epsilon": "rms_norm_eps",
    "head_size": "head_dim",
    "rotary_base": "rope_theta",
    "rotary_scaling": "rope_scaling",
    "attn_bias": "attention_bias",
}

#: Modules by their Hugging Face name: outside the layers, and within one.
MODULES = {
    "model.embed_tokens": "transformer.vocab_embedding",
    "model.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
LAYER_MODULES = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_layernorm",
    "self_attn.q_proj": "attention.qkv",
    "self_attn.k_proj": "attention.qkv",
    "self_attn.v_proj": "attention.qkv",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.q_layernorm",
    "self_attn.k_norm": "attention.k_layernorm",
    "mlp.gate_proj": "mlp.fc",
    "mlp.up_proj": "mlp.gate",
    "mlp.down_proj": "mlp.proj",
}


class TrtllmCheckpoint:
    """Implements ``trt_resa.builder.checkpoint.Checkpoint``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_json(path / "config.json", required=True)
        _check_kind(config, path)
        self._entries: dict[str, Entry] = dict(read_header(path / WEIGHTS))
        generation = read_json(path / "generation_config.json", required=False)
        eos = eos_token_ids(generation, config)
        if not eos:
            _logger.warning(
                "%s names no end-of-sequence token, as TensorRT-LLM checkpoints do; put the "
                "model's generation_config.json and tokenizer files into it, or give end_id with "
                "each request",
                path,
            )
        translated = _hf_config(config, path)
        # The loader of TensorRT-LLM takes the embedding for a head that is not stored.
        translated["tie_word_embeddings"] = (
            bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in self._entries
        )
        self.model = model_config(translated, eos, path)
        # Not recorded: TensorRT-LLM takes a window at run time, and by default attends to all.
        self.sliding_window: int | None = None
        self.dtype = FLOAT_TYPES[self._entry("model.embed_tokens.weight").dtype]

    def shape(self, name: str) -> tuple[int, ...]:
        """A fused tensor of another height than the model's comes whole, to be refused."""
        shape, rows = self._entry(name).shape, self._rows(name)
        if rows is None or shape[0] != self.model.qkv_size:
            return shape
        return (rows.stop - rows.start, *shape[1:])

    def tensor(self, name: str) -> torch.Tensor:
        return read_tensor(self._entry(name).file, _stored_name(name), self._rows(name))

    def int4_has_offsets(self, module: str) -> bool | None:
        self._entry(f"{module}.weight")
        return None

    def int4(self, module: str) -> Int4Weight | None:
        self._entry(f"{module}.weight")
        return None

    def sha256(self) -> str:
        return headers_sha256(self.path, (self.path / WEIGHTS,))

    def save_tokenizer(self, directory: Path) -> None:
        save_tokenizer(self.path, directory)

    def largest_shard_bytes(self) -> int:
        return (self.path / WEIGHTS).stat().st_size

    def _entry(self, name: str) -> Entry:
        stored = _stored_name(name)
        entry = self._entries.get(stored)
        if entry is None:
            raise CheckpointError(
                f"checkpoint {self.path} has no tensor {stored} ({name}); convert the model again "
                "with TensorRT-LLM's convert_checkpoint.py, or give its Hugging Face directory"
            )
        if entry.dtype not in FLOAT_TYPES:
            raise CheckpointError(
                f"checkpoint {self.path}: tensor {stored} has element type {entry.dtype}; allowed "
                f"are {', '.join(FLOAT_TYPES)}: give an unquantized checkpoint"
            )
        return entry

    def _rows(self, name: str) -> slice | None:
        """The part of the fused qkv tensor that is ``name``; None: all rows."""
        q, kv = self.model.attention_size, self.model.num_kv_heads * self.model.head_dim
        parts = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
        part = parts.get(name.rpartition(".")[0].rpartition(".")[2])
        return None if part is None else slice(*part)


def _stored_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if layer is None:
        return f"{MODULES[module]}.{kind}"
    return f"transformer.layers.{layer[1]}.{LAYER_MODULES[layer[2]]}.{kind}"


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for what this reader does not read."""
    mapping = config.get("mapping") or {}
    ranks = [mapping.get(key, 1) for key in ("world_size", "tp_size", "pp_size")]
    files = sorted(file.name for file in path.glob(RANK_FILES))
    if any(size != 1 for size in ranks) or files != [WEIGHTS]:
        raise CheckpointError(
            f"checkpoint {path} is a TensorRT-LLM checkpoint of {max(*ranks, len(files))} ranks "
            f"({', '.join(files)}); one rank is supported: convert the model again with --tp_size "
            "1 --pp_size 1, or give its Hugging Face directory"
        )
    quantized = (config.get("quantization") or {}).get("quant_algo")
    if quantized:
        raise CheckpointError(
            f"checkpoint {path} is a TensorRT-LLM checkpoint quantized with {quantized}; "
            "unquantized ones are supported: convert the model again without quantization and "
            "build with --quantization w4a16, or give its Hugging Face directory"
        )
    position = str(config.get("position_embedding_type", "rope_gpt_neox"))
    if position != "rope_gpt_neox":
        raise CheckpointError(
            f"checkpoint {path} has position_embedding_type {position!r}, which is not supported; "
            "rope_gpt_neox is"
        )
    if (config.get("moe") or {}).get("num_experts"):
        raise CheckpointError(f"checkpoint {path} is a mixture of experts, which is not supported")


def _hf_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same facts under the keys of a Hugging Face config.json."""
    architecture = config.get("architecture")
    if architecture == QWEN and config.get("qwen_type") in ("qwen2", "qwen3"):
        model_type = config["qwen_type"]
    elif architecture in ARCHITECTURES:
        model_type = ARCHITECTURES[architecture]
    else:
        raise CheckpointError(
            f"checkpoint {path} has architecture {architecture!r}, which is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}, and {QWEN} of qwen_type qwen2 or qwen3"
        )
    translated = {RENAMED.get(key, key): value for key, value in config.items()}
    if config.get("head_size") and config.get("rotary_embedding_dim"):
        translated["partial_rotary_factor"] = config["rotary_embedding_dim"] / config["head_size"]
    return {**translated, "model_type": model_type}
