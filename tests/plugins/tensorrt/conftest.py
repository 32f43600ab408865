"""The plugin library and its hosts, skipped with the reason where they were not built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.tensorrt.conformance import Host
from trt_resa.kernels import KernelLibrary

PLUGIN_NAME = "libtrt_resa_plugin.so"
CONFORMANCE = Path(__file__).resolve().parents[3] / "plugins" / "tensorrt" / "conformance"


def compile_conformance(folder: Path, **definitions: str) -> Path:
    """Compiles the conformance project with these CMake definitions into ``folder``."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("the conformance host needs cmake and a C++ compiler")
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    for command in (
        ["cmake", "-S", str(CONFORMANCE), "-B", str(folder), *options],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def plugin_path(library: KernelLibrary) -> Path:
    """The plugin beside the kernel library, or the one that TRT_RESA_PLUGIN_LIBRARY names."""
    named = os.environ.get("TRT_RESA_PLUGIN_LIBRARY")
    path = Path(named) if named else library.path.with_name(PLUGIN_NAME)
    if not path.exists():
        message = f"{path} does not exist; build it with cmake (plugins/README.md)"
        if os.environ.get("TRT_RESA_CUDA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path.resolve()


@pytest.fixture(scope="session")
def conformance_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled conformance host, without TensorRT's headers."""
    return compile_conformance(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(params=[101501, 110100], ids=["TensorRT 10.15", "TensorRT 11.1"])
def host(request: pytest.FixtureRequest, conformance_build: Path, plugin_path: Path) -> Host:
    """The plugin in a host of each generation, whose loggers differ."""
    return Host(conformance_build / "libtrt_resa_conformance.so", plugin_path, request.param)
