"""An engine of a real model for the tests on a GPU, built once per run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smol_gpu_engine(smol_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in fp16, as engines of TensorRT-RTX and as weights; selection bites from 129 tokens
    on."""
    pytest.importorskip("tensorrt_rtx")
    from trt_resa.builder.build import build
    from trt_resa.config import BuildConfig, SparseAttentionConfig

    limits = BuildConfig(
        dtype="float16",
        executors=("tensorrt_rtx", "torch"),
        max_batch_size=8,
        max_seq_len=2048,
        max_num_tokens=512,
    )
    sparse = SparseAttentionConfig(dense_below=0, min_blocks=8, rectify_interval=16)
    path = tmp_path_factory.mktemp("smol") / "gpu"
    build(smol_checkpoint, path, limits, sparse)
    return path
