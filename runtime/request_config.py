"""The sparse attention settings of one request: the LLM's own, with what the request changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_resa.config import RectifyMode, SparseAttentionConfig
from trt_resa.errors import RequestError
from trt_resa.validation import replace

#: Changes to the settings of sparse attention: all of them, or those that differ by name.
SparseChanges = SparseAttentionConfig | Mapping[str, Any]


def request_config(
    own: SparseAttentionConfig,
    changes: SparseChanges | None,
    mode: RectifyMode | None,
    max_interval: int,
    fixed_selection: bool = False,
) -> SparseAttentionConfig:
    """``own`` with ``changes``, then ``mode``.

    ``fixed_selection``: what a selection depends on cannot change, as the executor has one only.
    Raises ConfigError for an unknown key or a bad value, RequestError for a setting that cannot
    differ from request to request.
    """
    if isinstance(changes, SparseAttentionConfig):
        config = changes
    else:
        config = replace(own, changes or {}, "sparse_attention_config")
    if mode is not None:
        config = replace(config, {"rectify_mode": mode}, "rectify_mode")
    if config.block_size != own.block_size:
        raise RequestError(
            f"block_size {config.block_size} differs from the engine's {own.block_size}, which "
            "holds for all requests; leave it out"
        )
    if fixed_selection and config.selection != own.selection:
        raise RequestError(
            "keep_ratio, min_blocks, local_blocks, sink_blocks and dense_below are fixed in an "
            "engine of executor 'tensorrt'; leave them out, or use executor 'tensorrt_rtx' or "
            "'torch'"
        )
    if config.rectify_interval > max_interval:
        raise RequestError(
            f"rectify_interval {config.rectify_interval} exceeds {max_interval}, the most rows of "
            "rectification in a forward of this LLM; lower it or make the LLM with a larger one"
        )
    return config
