"""Puts ``trt-resa bench`` together: the runtime measures, the builder makes the random engines.

Like ``trt_resa.cli``, it names their modules as text.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.shapes import SHAPES, shape
from trt_resa.validation import parse

#: Tokens of a dense pass that the random engines are built for.
_CHUNK = 2048


def _build_shape(name: str, path: Path, how: Any, sparse: SparseAttentionConfig) -> EngineDirectory:
    """``how`` is a ``ShapeBuild`` of the runtime; what it names is all that is built."""
    values: dict[str, Any] = {
        "dtype": how.dtype,
        "quantization": how.quantization,
        "executors": (how.executor,),
        "max_batch_size": how.max_batch_size,
        "max_seq_len": how.max_seq_len,
        "max_num_tokens": max(_CHUNK, how.max_batch_size * sparse.rectify_interval),
    }
    build = parse(BuildConfig, values, "bench")
    builder = importlib.import_module("trt_resa.builder.random_engine")
    model = shape(name, how.max_seq_len)
    engine: EngineDirectory = builder.build_random(
        name, model, path, build, sparse, share_layers=True
    )
    return engine


def _command() -> click.Command:
    runtime = importlib.import_module("trt_resa.runtime.bench_cli")
    made: click.Command = runtime.make_command(_build_shape, list(SHAPES))
    return made


bench = _command()
