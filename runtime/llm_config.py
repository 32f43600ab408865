"""What an LLM is made with: the engine's limits and settings, with the user's changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import max_logit_rows
from trt_resa.engine_dir import EngineConfig
from trt_resa.errors import ConfigError
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.request_config import SparseChanges
from trt_resa.validation import parse, replace

C = TypeVar("C")


def llm_sparse_config(engine: EngineConfig, changes: SparseChanges | None) -> SparseAttentionConfig:
    built = engine.sparse_attention_config
    if isinstance(changes, SparseAttentionConfig):
        config = changes
    else:
        config = replace(built, changes or {}, "sparse_attention_config")
    if config.block_size != built.block_size:
        raise ConfigError(
            f"block_size {config.block_size} differs from the engine's {built.block_size}, which "
            "is fixed when it is built"
        )
    rows = max_logit_rows(engine.build_config.max_batch_size, built.rectify_interval)
    if config.rectify_interval > rows:
        raise ConfigError(
            f"rectify_interval {config.rectify_interval} exceeds the {rows} logit rows that the "
            "engine was built for; lower it or build with a larger --rectify_interval"
        )
    return config


def llm_limits(
    engine: EngineConfig,
    max_batch_size: int | None,
    max_seq_len: int | None,
    max_num_tokens: int | None,
) -> Limits:
    """The engine's limits, lowered by what was given."""
    build = engine.build_config

    def lowered(name: str, given: int | None, built: int) -> int:
        if given is None:
            return built
        if not 1 <= given <= built:
            raise ConfigError(f"{name} {given} must be from 1 to the engine's {built}")
        return given

    length = build.max_seq_len or engine.pretrained_config.max_position_embeddings
    seq_len = lowered("max_seq_len", max_seq_len, length)
    batch = lowered("max_batch_size", max_batch_size, build.max_batch_size)
    tokens = lowered("max_num_tokens", max_num_tokens, build.max_num_tokens)
    if batch > tokens:
        raise ConfigError(f"max_batch_size {batch} exceeds max_num_tokens {tokens}; lower it")
    return Limits(
        max_batch_size=batch,
        max_seq_len=seq_len,
        max_input_len=min(build.max_input_len or seq_len, seq_len),
        max_num_tokens=tokens,
        max_logit_rows=max_logit_rows(
            build.max_batch_size, engine.sparse_attention_config.rectify_interval
        ),
    )


def given_config(cls: type[C], given: C | Mapping[str, Any] | None, where: str) -> C:
    return given if isinstance(given, cls) else parse(cls, given or {}, where)  # type: ignore[arg-type]


def llm_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for and PyTorch sees no GPU; use 'cpu'")
    return torch.device(name)
