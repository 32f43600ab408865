"""Fixtures for tests of the kernel library: skipped with the reason where there is none."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from trt_resa.kernels import KernelLibrary, KernelLibraryError, load_library


@pytest.fixture(scope="session")
def library() -> KernelLibrary:
    """The kernel library; with TRT_RESA_CUDA=1 its absence is a failure."""
    try:
        return load_library()
    except KernelLibraryError as error:
        if os.environ.get("TRT_RESA_CUDA") == "1":
            pytest.fail(f"TRT_RESA_CUDA=1 asks for the kernel library: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cuobjdump() -> Path:
    """NVIDIA's disassembler, from the packages of the extra ``test`` or a CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        for tool in Path(folder).glob("cu*/bin/cuobjdump"):
            return tool
    installed = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if installed is None:
        pytest.skip("needs the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm")
    return Path(installed)
