"""Fixtures for tests of the kernel library: skipped with the reason where there is none."""

from __future__ import annotations

import os

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
