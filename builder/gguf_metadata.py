"""Metadata of a GGUF file in the keys of Hugging Face's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trt_resa.builder.rope_parameters import DEFAULT_THETA
from trt_resa.errors import CheckpointError
from trt_resa.model_config import RopeConfig
from trt_resa.rope import inverse_frequencies

#: Architectures of llama.cpp that are read; Mistral files have the architecture llama.
ARCHITECTURES = ("llama", "qwen2", "qwen3")

#: Tokens that end a text or a turn.
EOS_KEYS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)

#: config.json key by metadata key (after the architecture's name).
REQUIRED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}

#: Llama 3.x stores its RoPE scaling as one divisor per frequency, computed from these numbers.
LLAMA3: Mapping[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_config(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: torch.Tensor | None,
    path: Path,
) -> dict[str, Any]:
    """A config.json for the file's metadata and tensors. Raises CheckpointError.

    ``rope_factors``: the tensor ``rope_freqs.weight``, [rotary_dim / 2], divisors of the inverse
    frequencies; None when the file has none.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"checkpoint {path} has the GGUF architecture {arch!r}, which is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"checkpoint {path} is one of {metadata['split.count']} parts; merge them first with "
            "llama-gguf-split --merge"
        )
    if metadata.get(f"{arch}.expert_count", 0):
        raise CheckpointError(f"checkpoint {path} is a mixture of experts, which is not supported")
    config: dict[str, Any] = {"model_type": arch}
    for key, name in (REQUIRED | OPTIONAL).items():
        value = metadata.get(f"{arch}.{key}")
        if value is not None:
            config[name] = _shortest(value) if isinstance(value, float) else value
        elif key in REQUIRED:
            raise CheckpointError(
                f"checkpoint {path} lacks the metadata {arch}.{key}; download the file again"
            )
    if isinstance(config.get("num_key_value_heads"), list):
        raise CheckpointError(
            f"checkpoint {path} has another number of KV heads in each layer, which is not "
            "supported"
        )
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if metadata.get(f"{arch}.attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise CheckpointError(
            f"checkpoint {path} has values of another size than its keys, which is not supported"
        )
    if "sliding_window" in config:
        config["use_sliding_window"] = True
    config["vocab_size"] = shapes.get("token_embd.weight", (0,))[0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in shapes
    config["rope_parameters"] = _rope_parameters(metadata, arch, config, rope_factors, path)
    return config


def _rope_parameters(
    metadata: Mapping[str, Any],
    arch: str,
    config: Mapping[str, Any],
    factors: torch.Tensor | None,
    path: Path,
) -> dict[str, Any]:
    rope = {
        key.removeprefix(f"{arch}.rope."): value
        for key, value in metadata.items()
        if key.startswith(f"{arch}.rope.")
    }
    parameters: dict[str, Any] = {
        "partial_rotary_factor": rope.get("dimension_count", config["head_dim"])
        / config["head_dim"],
    }
    factor = rope.get("scaling.factor", rope.get("scale_linear", 0.0))
    kind = rope.get("scaling.type", "linear" if factor else "none")
    if factors is not None:
        return parameters | _llama3(config.get("rope_theta", DEFAULT_THETA), factors, path)
    if kind == "none" or not factor:
        return parameters
    parameters |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        parameters |= {
            "original_max_position_embeddings": rope.get("scaling.original_context_length"),
            "attention_factor": _attention_factor(rope, factor),
            "beta_fast": rope.get("scaling.yarn_beta_fast"),
            "beta_slow": rope.get("scaling.yarn_beta_slow"),
        }
    return parameters


def _shortest(value: float) -> float:
    """The number that was written: the file holds fp32, in which 1e-5 is 9.999999747e-06."""
    return float(str(np.float32(value)))


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float | None:
    """llama.cpp multiplies YaRN's own formula by the stored number; None stands for the formula."""
    stored = rope.get("scaling.attn_factor", rope.get("scaling.yarn_attn_factor"))
    return None if stored is None else stored * (0.1 * math.log(factor) + 1.0)


def _llama3(theta: float, factors: torch.Tensor, path: Path) -> dict[str, Any]:
    """The llama3 scaling that gives these divisors; the file does not name its parameters."""
    factor = max(1.0, factors.max().item())
    half = len(factors)
    plain = RopeConfig(theta=theta, rotary_dim=2 * half)
    scaled = RopeConfig(theta=theta, rotary_dim=2 * half, scaling="llama3", factor=factor, **LLAMA3)
    expected = inverse_frequencies(plain)[0] / inverse_frequencies(scaled)[0]
    if not torch.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(
            f"checkpoint {path} has RoPE factors (rope_freqs.weight) that are not those of Llama "
            "3.x, which are the ones supported; use the model's safetensors"
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}
