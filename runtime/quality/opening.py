"""Flags that ``trt-resa eval`` and ``trt-resa tune`` share, and the LLM they open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trt_resa.cli_options import given, options_of, read_sparse_section
from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.runtime.quality.forcing import ForcingLLM

KV_CACHE_PREFIX = "kv_cache_"
F = TypeVar("F", bound=Callable[..., Any])


def engine_options(function: F) -> F:
    """Which engine runs, how, and with which settings of sparse attention."""
    decorators = (
        click.option("--engine_dir", type=click.Path(path_type=Path), required=True,
                     help="engine directory"),
        click.option("--executor", type=click.Choice(["auto", "tensorrt_rtx", "torch"]),
                     default="auto", show_default=True, help="what runs the forwards"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                     show_default=True),
        click.option("--max_batch_size", type=int,
                     help="sequences at once [default: the engine's]"),
        click.option("--chat", is_flag=True, help="apply the model's chat template"),
        click.option("--config", type=click.Path(path_type=Path),
                     help="YAML with sparse_attention_config"),
        options_of(SparseAttentionConfig),
        options_of(KvCacheConfig, prefix=KV_CACHE_PREFIX),
    )  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def open_llm(flags: dict[str, Any]) -> ForcingLLM:
    """The LLM of the flags of ``engine_options``."""
    return ForcingLLM(
        flags["engine_dir"],
        executor=flags["executor"],
        device=flags["device"],
        max_batch_size=flags["max_batch_size"],
        kv_cache_config=given(KvCacheConfig, flags, KV_CACHE_PREFIX),
        sparse_attention_config=sparse_changes(flags),
    )


def sparse_changes(flags: dict[str, Any]) -> dict[str, Any]:
    """What the YAML and then the flags say of sparse attention."""
    return {**read_sparse_section(flags["config"]), **given(SparseAttentionConfig, flags)}
