"""The plugin's own declaration of TensorRT's ABI against NVIDIA's headers, fact by fact."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.tensorrt.conftest import compile_conformance

SDK_VARIABLE = "TRT_RESA_TENSORRT_INCLUDE"


def facts(program: Path) -> list[str]:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def sdk_folders() -> list[Path]:
    """The variable holds folders of NvInferRuntime.h, separated as in PATH."""
    return [Path(name) for name in os.environ.get(SDK_VARIABLE, "").split(os.pathsep) if name]


def cuda_include() -> str:
    """The folder of cuda_runtime_api.h, which NVIDIA's headers include."""
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    compiler = shutil.which("nvcc")
    if compiler is not None:
        toolkits.append(Path(compiler).resolve().parents[1])
    toolkits += sorted(Path("/usr/local").glob("cuda-*"))
    for toolkit in toolkits:
        if (toolkit / "include" / "cuda_runtime_api.h").exists():
            return str(toolkit / "include")
    pytest.skip("cuda_runtime_api.h was not found; set CUDA_HOME")


def test_interfaces_and_generations(conformance_build: Path) -> None:
    """Interface versions as documented; the generations differ in the host's interfaces alone."""
    ten, eleven = (facts(conformance_build / f"trt_resa_facts_{n}") for n in (10, 11))
    assert "interface IPluginV3 PLUGIN 1.0" in ten
    assert "interface IPluginV3OneBuild PLUGIN_V3ONE_BUILD 1.0" in ten
    assert "interface IPluginCreatorV3One PLUGIN CREATOR_V3ONE 1.0" in ten
    different = [a for a, b in zip(ten, eleven, strict=True) if a != b]
    assert different
    assert all(fact.startswith("slot host ") for fact in different)


@pytest.mark.skipif(not sdk_folders(), reason=f"{SDK_VARIABLE} names no TensorRT headers")
def test_facts_equal_the_official_headers(conformance_build: Path, tmp_path: Path) -> None:
    for index, folder in enumerate(sdk_folders()):
        build = compile_conformance(
            tmp_path / str(index), TENSORRT_INCLUDE_DIR=str(folder), CUDA_INCLUDE_DIR=cuda_include()
        )
        version = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
        major = re.search(r"define (?:TRT_MAJOR_ENTERPRISE|NV_TENSORRT_MAJOR) (\d+)", version)
        assert major is not None
        generation = 10 if major[1] == "10" else 11
        program = f"trt_resa_facts_{generation}"
        assert facts(conformance_build / program) == facts(build / program), folder
