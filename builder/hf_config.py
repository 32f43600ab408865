"""Facts of a model from Hugging Face's config.json and generation_config.json.

Absent keys take the defaults of ``transformers``. The GGUF reader translates its metadata to the
same keys, so both kinds of checkpoint are judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_resa.builder.families import FAMILIES, Family
from trt_resa.builder.rope_parameters import rope_config
from trt_resa.errors import CheckpointError, ConfigError
from trt_resa.model_config import ModelConfig
from trt_resa.validation import parse

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")
#: Default of transformers' MistralConfig and Qwen configurations.
DEFAULT_SLIDING_WINDOW = 4096


def model_config(config: Mapping[str, Any], eos_ids: tuple[int, ...], where: Path) -> ModelConfig:
    """ModelConfig of a config.json. Raises CheckpointError when the model is not supported."""
    family = _family(config, where)
    _check_numbers(config, where)
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(
            f"checkpoint {where}: hidden_act {activation!r} is not supported; silu is"
        )
    heads = config["num_attention_heads"]
    head_dim = _head_dim(config, family)
    rope = rope_config(config, head_dim, where)
    longest = config["max_position_embeddings"]
    if rope.scaling == "yarn" and rope.original_max_position_embeddings:
        # Qwen documents YaRN as an addition to config.json that leaves max_position_embeddings.
        longest = max(longest, int(rope.original_max_position_embeddings * rope.factor))
    values = {
        "model_type": config["model_type"],
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": longest,
        "rope": rope,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": _decided(family.qkv_bias, config),
        "output_bias": _decided(family.output_bias, config),
        "mlp_bias": _decided(family.mlp_bias, config),
        "qk_norm": family.qk_norm,
        "eos_token_ids": eos_ids,
    }
    try:
        return parse(ModelConfig, values, f"checkpoint {where}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Tokens that sliding-window layers attend to; None when the model has no such layers."""
    if not _decided(FAMILIES[config["model_type"]].sliding_window, config):
        return None
    window: int | None = config.get("sliding_window", DEFAULT_SLIDING_WINDOW)
    return window


def eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-sequence tokens of the first configuration that names any."""
    for config in configs:
        ids = config.get("eos_token_id")
        if isinstance(ids, int):
            return (ids,)
        if isinstance(ids, list) and ids:
            return tuple(ids)
    return ()


def _family(config: Mapping[str, Any], where: Path) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        experts = any(config.get(key) for key in ("num_local_experts", "num_experts"))
        kind = " (a mixture of experts)" if experts else ""
        raise CheckpointError(
            f"checkpoint {where} has model_type {model_type!r}{kind}, which is not supported; "
            f"supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _check_numbers(config: Mapping[str, Any], where: Path) -> None:
    given_optionals = [key for key in OPTIONAL if config.get(key) is not None]
    for key in (*REQUIRED, *given_optionals):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            given = "lacks the key" if value is None else f"has {value!r} for"
            raise CheckpointError(
                f"checkpoint {where}: its configuration {given} {key}, which must be a positive "
                "integer"
            )


def _head_dim(config: Mapping[str, Any], family: Family) -> int:
    if "head_dim" not in config and family.head_dim:
        return family.head_dim
    head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return head_dim


def _decided(rule: bool | str, config: Mapping[str, Any]) -> bool:
    return bool(config.get(rule, False)) if isinstance(rule, str) else rule
