"""The kernel library as it is on a machine without a GPU: loading, contract, refusals."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_resa import kernels
from trt_resa.kernel_params import KernelDtype, KvAppendParams, Status
from trt_resa.kernels import KernelLaunchError, KernelLibraryError

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT / "plugins" / "include" / "trt_resa"
C_TYPES = {
    "int32_t": ctypes.c_int32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
ADDRESS = 1 << 20  # aligned, and never read: every call with it is refused before a launch


def valid_params(**changes: Any) -> KvAppendParams:
    """Parameters of Qwen2.5-7B's shape that no check refuses, with ``changes``."""
    values: dict[str, Any] = {name: ADDRESS for name, kind in pointer_fields()}
    values |= {
        "num_rows": 4,
        "batch_size": 2,
        "max_blocks_per_seq": 8,
        "num_blocks": 32,
        "q_heads": 28,
        "kv_heads": 4,
        "head_dim": 128,
        "block_size": 16,
        "rotary_dim": 128,
        "dtype": 0,
        "rope_scale": 1.0,
        "norm_eps": 1e-6,
    }
    return KvAppendParams(**values | changes)


def pointer_fields() -> list[tuple[str, Any]]:
    return [field for field in KvAppendParams._fields_ if field[1] is ctypes.c_void_p]


def status_of(library: kernels.KernelLibrary, params: KvAppendParams) -> int:
    try:
        library.launch(params)
    except KernelLaunchError as error:
        return error.status
    return Status.OK


def test_version_is_that_of_the_package(library):
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{library.version}"' in pyproject


def test_sha256_is_that_of_the_file(library):
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("sha256sum is not installed")
    output = subprocess.run([tool, library.path], capture_output=True, text=True, check=True).stdout
    assert output.split()[0] == library.sha256


@pytest.mark.parametrize("params", kernels.KERNELS, ids=lambda params: params.kernel)
def test_struct_mirrors_the_header(params):
    """Names, order and types; ``load_library`` compares the sizes."""
    header = (HEADERS / f"{params.kernel}.h").read_text(encoding="utf-8")
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    body = re.search(r"typedef struct \w+ \{(.*?)\}", header, flags=re.DOTALL).group(1)
    fields = []
    for declaration in body.split(";"):
        if not declaration.strip():
            continue
        kind, name = declaration.strip().rsplit(maxsplit=1)
        fields.append((name, ctypes.c_void_p if kind.endswith("*") else C_TYPES[kind]))
    assert fields == params._fields_


def test_struct_of_another_size_is_refused(library, monkeypatch):
    class Longer(KvAppendParams):
        _fields_ = (("extra", ctypes.c_int64),)

    monkeypatch.setattr(kernels, "KERNELS", (Longer,))
    with pytest.raises(KernelLibraryError, match="another version"):
        kernels.KernelLibrary(library.path)


def test_params_need_every_field_and_no_other():
    with pytest.raises(TypeError, match=r"missing.*'qkv'.*unknown.*'qvk'"):
        KvAppendParams(qvk=1)


@pytest.mark.parametrize(
    ("name", "enum"),
    [("trt_resa_status", Status), ("trt_resa_dtype", KernelDtype)],
)
def test_enum_mirrors_the_header(name, enum):
    header = (HEADERS / "status.h").read_text(encoding="utf-8")
    body = re.search(rf"enum {name} {{(.*?)}}", header, flags=re.DOTALL).group(1)
    found = {key: int(value) for key, value in re.findall(r"TRT_RESA_(\w+) = (\d+)", body)}
    assert found == {member.name: member.value for member in enum}


def test_every_status_has_its_own_text(library):
    texts = [library.status_string(status) for status in Status]
    assert len(set(texts)) == len(texts)
    assert library.status_string(77) == "not a status of this library"
    assert "driver" in library.status_string(Status.CUDA_ERROR + 35)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        *(
            ({name: None}, Status.NULL_POINTER)
            for name, _ in pointer_fields()
            if "norm" not in name
        ),
        *(
            ({name: ADDRESS + 8}, Status.MISALIGNED_POINTER)
            for name in ("qkv", "q_norm", "k_norm", "q", "kv", "summary")
        ),
        ({"dtype": 2}, Status.BAD_DTYPE),
        ({"dtype": -1}, Status.BAD_DTYPE),
        ({"head_dim": 80}, Status.BAD_HEAD_DIM),
        ({"head_dim": 0}, Status.BAD_HEAD_DIM),
        ({"block_size": 8}, Status.BAD_BLOCK_SIZE),
        ({"block_size": 48}, Status.BAD_BLOCK_SIZE),
        ({"q_heads": 0}, Status.BAD_HEADS),
        ({"kv_heads": 0}, Status.BAD_HEADS),
        ({"kv_heads": 3}, Status.BAD_HEADS),
        ({"rotary_dim": -16}, Status.BAD_ROTARY_DIM),
        ({"rotary_dim": 24}, Status.BAD_ROTARY_DIM),
        ({"rotary_dim": 144}, Status.BAD_ROTARY_DIM),
        ({"num_rows": -1}, Status.BAD_EXTENT),
        ({"batch_size": -1}, Status.BAD_EXTENT),
        ({"num_blocks": 0}, Status.BAD_EXTENT),
        ({"max_blocks_per_seq": 0}, Status.BAD_EXTENT),
        ({"norm_eps": 0.0}, Status.BAD_EPSILON),
        ({"norm_eps": float("nan")}, Status.BAD_EPSILON),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(library, changes, status):
    assert status_of(library, valid_params(**changes)) == status


@pytest.mark.parametrize("changes", [{"num_rows": 0}, {"batch_size": 0}], ids=str)
def test_nothing_to_append_is_ok_without_a_gpu(library, changes):
    assert status_of(library, valid_params(**changes)) == Status.OK


def test_launch_without_a_device_returns_a_status(library):
    """In a process that sees no GPU, whatever the machine has."""
    program = (
        "from tests.plugins.test_library import *\n"
        "print(status_of(kernels.load_library(), valid_params()))"
    )
    env = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        kernels.LIBRARY_VARIABLE: str(library.path),
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) in {Status.CUDA_ERROR + error for error in (35, 100)}


@pytest.fixture(scope="module")
def blocks() -> ModuleType:
    """The Python twin of the kernels' block arithmetic."""
    return pytest.importorskip("trt_resa.blocks", exc_type=ImportError)


@settings(deadline=None)
@given(
    tokens=st.integers(0, 1 << 40),
    block_size=st.integers(1, 1 << 16),
)
def test_num_blocks_equals_python(library, blocks, tokens, block_size):
    assert library.num_blocks(tokens, block_size) == blocks.num_blocks(tokens, block_size)


@settings(deadline=None)
@given(
    n=st.integers(0, 1 << 32),
    keep_ratio=st.floats(0, 1) | st.sampled_from([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.7]),
    min_blocks=st.integers(0, 1 << 20),
)
def test_num_selected_equals_python(library, blocks, n, keep_ratio, min_blocks):
    expected = blocks.num_selected(n, keep_ratio, min_blocks)
    assert library.num_selected(n, keep_ratio, min_blocks) == expected


def test_num_selected_equals_python_at_every_small_count(library, blocks):
    for ratio in (0.05, 0.1, 0.2, 0.3, 0.9, 1.0):
        for n in range(20_000):
            assert library.num_selected(n, ratio, 16) == blocks.num_selected(n, ratio, 16)


def test_block_arithmetic_refuses_nonsense(library):
    assert library.num_blocks(-1, 16) == -1
    assert library.num_blocks(16, 0) == -1
    assert library.num_selected(-1, 0.1, 16) == -1
    assert library.num_selected(8, 1.5, 16) == -1
    assert library.num_selected(8, float("nan"), 16) == -1


def test_every_architecture_is_in_the_library(library, cuobjdump):
    def listed(option: str) -> set[str]:
        command = [str(cuobjdump), option, str(library.path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\.sm_(\d+[a-z]?)\.", output))

    numbers = {name: name.partition("-")[0] for name in library.architectures}
    assert listed("--list-elf") == {
        number for name, number in numbers.items() if not name.endswith("-virtual")
    }
    assert listed("--list-ptx") == {
        number for name, number in numbers.items() if not name.endswith("-real")
    }


def test_only_the_api_is_exported(library):
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("nm is not installed")
    command = [tool, "--dynamic", "--defined-only", str(library.path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in output.splitlines()}
    assert exported
    assert {name for name in exported if not name.startswith("trt_resa_")} == set()


def test_kernels_include_neither_tensorrt_nor_torch():
    sources = [
        path
        for folder in (ROOT / "plugins" / "kernels", HEADERS)
        for path in folder.rglob("*")
        if path.suffix in {".h", ".cuh", ".cu", ".cpp"}
    ]
    assert sources
    included = {
        (path.name, name)
        for path in sources
        for name in re.findall(r'#\s*include\s*[<"]([^">]+)', path.read_text(encoding="utf-8"))
    }
    assert not [
        entry for entry in included if re.match(r"(Nv|torch/|ATen/|c10/|cutlass/)", entry[1])
    ]


def test_missing_library_says_why_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(kernels.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_folders", lambda: iter([tmp_path]))
    monkeypatch.setattr(kernels, "_is_checkout", lambda: False)
    (tmp_path / kernels.BUILD_RECORD_NAME).write_text('{"cuda": false, "reason": "of the moon"}')
    with pytest.raises(
        KernelLibraryError, match=r"because of the moon; reinstall .*TRT_RESA_CUDA=1"
    ):
        kernels.find_library()


def test_named_library_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv(kernels.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(KernelLibraryError, match=r"absent\.so.*no file"):
        kernels.find_library()


def test_damaged_library_is_one_sentence(tmp_path):
    path = tmp_path / kernels.LIBRARY_NAME
    path.write_bytes(b"not an ELF file")
    with pytest.raises(KernelLibraryError, match=f"{path} cannot be used"):
        kernels.KernelLibrary(path)
