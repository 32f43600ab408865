"""RoPE keys of config.json, in both layouts of Hugging Face, as a RopeConfig.

transformers 4 writes ``rope_theta`` beside ``rope_scaling``; transformers 5 writes everything into
``rope_parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_resa.errors import CheckpointError, ConfigError
from trt_resa.model_config import RopeConfig
from trt_resa.validation import parse

DEFAULT_THETA = 10000.0

#: By ``rope_type``: the scaling, the keys it needs, the keys it may have.
ROPE_TYPES: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "default": ("none", (), ()),
    "none": ("none", (), ()),
    "linear": ("linear", ("factor",), ()),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (
        "yarn",
        (),
        (
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
}


def rope_config(config: Mapping[str, Any], head_dim: int, where: Path) -> RopeConfig:
    """RopeConfig of a config.json. Raises CheckpointError, naming the type or key at fault."""
    parameters = _merged(config, where)
    rope_type = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(
            f"checkpoint {where}: RoPE type {rope_type!r} is not supported; supported are "
            f"{', '.join(ROPE_TYPES)}"
        )
    scaling, needed, optional = ROPE_TYPES[rope_type]
    missing = [key for key in needed if parameters.get(key) is None]
    if missing:
        raise CheckpointError(
            f"checkpoint {where}: RoPE type {rope_type} needs the key {missing[0]}, which its "
            "configuration lacks"
        )
    values: dict[str, Any] = {
        "theta": parameters.get("rope_theta") or DEFAULT_THETA,
        "rotary_dim": _rotary_dim(parameters, head_dim, where),
        "scaling": scaling,
    }
    values |= {key: parameters[key] for key in needed + optional if parameters.get(key) is not None}
    if scaling in ("llama3", "yarn"):
        longest = config["max_position_embeddings"]
        original = parameters.get("original_max_position_embeddings") or longest
        values["original_max_position_embeddings"] = original
        if "factor" not in values and isinstance(original, int):
            values["factor"] = longest / original
    try:
        return parse(RopeConfig, values, f"checkpoint {where}, RoPE parameters")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _rotary_dim(parameters: Mapping[str, Any], head_dim: int, where: Path) -> int:
    partial = parameters.get("partial_rotary_factor")
    if partial is None:
        return head_dim
    if not isinstance(partial, (int, float)) or not 0 < partial <= 1:
        raise CheckpointError(
            f"checkpoint {where}: partial_rotary_factor {partial!r} must be in (0, 1]"
        )
    return int(head_dim * partial)


def _merged(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """One mapping of all RoPE keys; inner ones win, except original_max_position_embeddings."""
    merged = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key in ("rope_scaling", "rope_parameters"):
        section = config.get(key) or {}
        if not isinstance(section, Mapping) or any(
            isinstance(v, Mapping) for v in section.values()
        ):
            raise CheckpointError(
                f"checkpoint {where}: {key} must hold one set of RoPE parameters for all layers"
            )
        merged.update({name: value for name, value in section.items() if value is not None})
    if config.get("original_max_position_embeddings"):
        merged["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return merged
