"""What the model repository tells the model about its engine: ``parameters`` of config.pbtxt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_resa.cli_options import field_descriptions
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineConfig
from trt_resa.errors import ConfigError
from trt_resa.validation import parse, replace

ENGINE_DIR = "engine_dir"
KV_CACHE_PREFIX = "kv_cache_"

#: Arguments of LLM that are passed on under their own name, and what they mean.
LLM_PARAMETERS = {
    "executor": "what runs a forward [default: auto]",
    "device": "cpu, cuda or auto [default: auto]",
    "max_batch_size": "sequences at once [default: the engine's]",
    "max_seq_len": "tokens per sequence [default: the engine's]",
    "max_num_tokens": "tokens per forward [default: the engine's]",
    "gpu_weights_percent": "of tensorrt: share of the weights in GPU memory, 0 to 1 [default: all]",
}
_INTEGERS = ("max_batch_size", "max_seq_len", "max_num_tokens")


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"the parameter {name} = '{text}' is not a whole number")
    return int(text)


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"the parameter {name} = '{text}' is not a number") from None


#: How a parameter that is a number is read.
_NUMBERS = {**dict.fromkeys(_INTEGERS, _whole_number), "gpu_weights_percent": _share}


def descriptions() -> dict[str, str]:
    """Every parameter and what it means."""
    sparse = field_descriptions(SparseAttentionConfig)
    cache = field_descriptions(KvCacheConfig)
    scheduler = field_descriptions(SchedulerConfig)
    return {
        ENGINE_DIR: "engine directory; a relative path starts at the model's version directory",
        **LLM_PARAMETERS,
        **{KV_CACHE_PREFIX + name: text for name, text in cache.items()},
        **scheduler,
        **{name: f"{text} [default: the engine's]" for name, text in sparse.items()},
    }


def to_strings(values: Mapping[str, Any], engine: EngineConfig) -> dict[str, str]:
    """The parameters as Triton holds them; raises ConfigError for what ``engine`` cannot take."""
    strings = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }
    arguments = llm_arguments(strings, Path())
    parse(KvCacheConfig, arguments["kv_cache_config"], "KV cache")
    parse(SchedulerConfig, arguments["scheduler_config"], "scheduler")
    replace(
        engine.sparse_attention_config, arguments["sparse_attention_config"], "sparse attention"
    )
    for name in _INTEGERS:
        built = getattr(engine.build_config, name)
        if name in arguments and not 1 <= arguments[name] <= built:
            raise ConfigError(f"{name} {arguments[name]} must be from 1 to the engine's {built}")
    return strings


def llm_arguments(strings: Mapping[str, str], version_dir: Path) -> dict[str, Any]:
    """Arguments for ``LLM``, which checks their values. Names in upper case are Triton's own.

    Raises ConfigError for a name that is unknown.
    """
    known = descriptions()
    values = {name: text for name, text in strings.items() if not name.isupper()}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"config.pbtxt: unknown parameter '{unknown[0]}'; allowed: {', '.join(known)}"
        )
    if ENGINE_DIR not in values:
        raise ConfigError(f"config.pbtxt: the parameter {ENGINE_DIR} is missing")
    arguments: dict[str, Any] = {"model": version_dir / values[ENGINE_DIR]}
    for name in LLM_PARAMETERS:
        if name in values:
            text = values[name]
            arguments[name] = _NUMBERS[name](name, text) if name in _NUMBERS else text
    arguments["kv_cache_config"] = _fields(KvCacheConfig, values, KV_CACHE_PREFIX)
    arguments["scheduler_config"] = _fields(SchedulerConfig, values, "")
    arguments["sparse_attention_config"] = _fields(SparseAttentionConfig, values, "")
    return arguments


def _fields(cls: type, values: Mapping[str, str], prefix: str) -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: values[prefix + name] for name in names if prefix + name in values}
