"""An engine directory of random weights: for benchmarks, and for tests that need no real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trt_resa.builder.build import BuiltSegment, build_plan
from trt_resa.builder.plan import plan_checkpoint
from trt_resa.builder.random_checkpoint import RandomCheckpoint
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.model_config import ModelConfig


def build_random(
    name: str,
    model: ModelConfig,
    output_dir: Path,
    build: BuildConfig,
    sparse: SparseAttentionConfig,
    *,
    share_layers: bool = False,
    progress: Callable[[BuiltSegment], None] = lambda _: None,
) -> EngineDirectory:
    """Build ``model`` with random weights that ``name`` determines.

    ``share_layers``: the inner segments are one file under many names. Each is loaded for itself,
    so the engine takes the memory and the time of a real one; what it says means even less.
    """
    dtype = "float16" if build.dtype == "auto" else build.dtype
    checkpoint = RandomCheckpoint(name, model, dtype, int4=build.quantization == "w4a16")
    planned = plan_checkpoint(checkpoint, build, sparse)
    return build_plan(planned, output_dir, share_layers=share_layers, progress=progress)
