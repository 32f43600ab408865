"""One server for all tests of this folder: SmolLM2 on the torch executor.

Where the server cannot be had the tests skip, or fail with TRT_RESA_TRITON=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.server import TritonServer, Unavailable, install
from trt_resa.cli import main


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tritonserver" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tritonserver() -> None:
    """Asked for by whatever needs the server."""
    try:
        install()
    except Unavailable as reason:
        if os.environ.get("TRT_RESA_TRITON") == "1":
            pytest.fail(f"TRT_RESA_TRITON=1 asks for tritonserver: {reason}")
        pytest.skip(str(reason))


def write_repository(engine: Path, output: Path, *flags: object) -> Path:
    """By the command that users call."""
    arguments = ["--engine_dir", engine, "--output_dir", output, "--executor", "torch", *flags]
    main(["triton-repo", *map(str, arguments)])
    return output


@pytest.fixture(scope="session")
def server(
    tritonserver: None, smol_engine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    base = tmp_path_factory.mktemp("triton")
    limits = ("--max_batch_size", 8, "--max_seq_len", 1024, "--kv_cache_max_tokens", 8192)
    repository = write_repository(smol_engine, base / "models", "--device", "cpu", *limits)
    with TritonServer(repository, base / "server.log") as running:
        yield running.wait_ready()
    assert running.process.returncode == 0


@pytest.fixture
def tiny_repository(tiny_engine: Path, tmp_path: Path) -> Path:
    return write_repository(tiny_engine, tmp_path / "models", "--device", "cpu", "--copy_engine")
