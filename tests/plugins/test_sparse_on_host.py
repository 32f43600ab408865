"""The sparse step compiled for the host, where every thread of a thread block is a fiber."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "host"
PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def cuda_headers() -> Path:
    """The folder of cuda_fp16.h, whose 16-bit types also compute on the host."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1]]
    for root in (*roots, "/usr/local/cuda"):
        if root and (Path(root) / "include" / "cuda_fp16.h").exists():
            return Path(root) / "include"
    pytest.skip("needs CUDA's headers: set CUDA_HOME")


def run_on_host(folder: Path, name: str, *includes: Path) -> None:
    """Compile ``name``.cpp with copies of the kernels, those that hold machine code replaced, and
    run it; it says what is wrong."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    # Copies, so that what they include from their own folder is found here first.
    for source in (PLUGINS / "kernels").iterdir():
        shutil.copy(source, folder)
    shutil.copy(HERE / "mma_on_host.cuh", folder / "mma.cuh")
    shutil.copy(HERE / "sync_on_host.cuh", folder / "sparse_sync.cuh")
    shutil.copy(HERE / "cluster_on_host.cuh", folder / "cluster.cuh")
    program = folder / name
    # Fortified jumps refuse to go to another stack.
    command = [compiler, "-std=c++17", "-Og", "-w", "-U_FORTIFY_SOURCE", "-fsanitize=undefined"]
    command += ["-fno-sanitize-recover", str(HERE / f"{name}.cpp"), "-o", str(program)]
    command += [f"-I{path}" for path in (folder, HERE, PLUGINS / "include", *includes)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["places", "plan", "topk"])
def test_parts(tmp_path: Path, name: str) -> None:
    run_on_host(tmp_path, name)


def test_step(tmp_path: Path) -> None:
    run_on_host(tmp_path, "step", cuda_headers())
