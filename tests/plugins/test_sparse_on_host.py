"""Parts of the sparse step compiled for the host: every thread of a thread block is a fiber."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "host"
PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
SOURCES = ("sparse_topk.cuh", "sparse_plan.cuh", "sparse_args.h", "softmax_state.cuh", "blocks.h")


@pytest.mark.parametrize("name", ["plan", "topk"])
def test_on_host(tmp_path: Path, name: str) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    # Copies, so that what they include from their own folder is found here first.
    for source in SOURCES:
        shutil.copy(PLUGINS / "kernels" / source, tmp_path)
    shutil.copy(HERE / "copies_on_host.cuh", tmp_path / "mma.cuh")
    program = tmp_path / name
    command = [compiler, "-std=c++17", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover"]
    command += [f"-I{tmp_path}", f"-I{HERE}", f"-I{PLUGINS / 'include'}"]
    command += [str(HERE / f"{name}.cpp"), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
