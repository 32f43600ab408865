"""Checkpoint to engine directory: every family, limits, refusals, memory, and nothing half-made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.checkpoints import large_checkpoint, tiny_checkpoint
from trt_resa.builder import report
from trt_resa.builder.build import build
from trt_resa.builder.families import FAMILIES
from trt_resa.builder.plan import plan
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import ATTENTION_WEIGHTS, EngineDirectory, segment_engine, segment_weights
from trt_resa.errors import CheckpointError, ConfigError, EngineError
from trt_resa.tables import quantized_linears

pytest.importorskip("tensorrt_rtx")
from trt_resa.rtx import VERSION, check_engine_file

ROOT = Path(__file__).resolve().parents[2]
SPARSE = SparseAttentionConfig()


def limits(**changes: object) -> BuildConfig:
    return BuildConfig(**{"max_batch_size": 4, "max_num_tokens": 128, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds(family: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "checkpoint", family)
    build(source, tmp_path / "engine", limits(), SPARSE)
    engine = EngineDirectory(tmp_path / "engine")
    for index, segment in enumerate(engine.network.segments()):
        check_engine_file(engine.path / segment_engine(index))
        with safe_open(engine.path / segment_weights(index), framework="pt") as stored:
            assert set(stored.keys()) == {weight.name for weight in segment.weights}
            for weight in segment.weights:
                assert tuple(stored.get_slice(weight.name).get_shape()) == weight.shape
    assert (engine.path / ATTENTION_WEIGHTS).exists() == (family == "qwen3")
    assert (engine.path / "tokenizer.json").exists()
    info = engine.config.build_info
    assert (info.tensorrt_flavour, info.tensorrt_version) == ("tensorrt_rtx", VERSION)
    assert info.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert info.checkpoint == "checkpoint"


@pytest.mark.parametrize(
    ("changes", "dtype", "int4"),
    [({"dtype": "bfloat16"}, "bfloat16", 0), ({"quantization": "w4a16"}, "float16", 8)],
)
def test_dtype_and_quantization(
    changes: dict, dtype: str, int4: int, checkpoint: Path, tmp_path: Path
) -> None:
    engine = build(checkpoint, tmp_path / "engine", limits(**changes), SPARSE)
    assert engine.config.build_config.dtype == dtype
    assert quantized_linears(engine.network) == (int4, 9)
    weights = load_file(engine.path / segment_weights(1))
    assert weights["layers.0.mlp_norm.weight"].dtype == getattr(torch, dtype)


def test_limits_are_written_as_numbers(checkpoint: Path, tmp_path: Path) -> None:
    engine = build(checkpoint, tmp_path / "e", limits(executors=("torch",)), SPARSE)
    written = json.loads((engine.path / "config.json").read_text())["build_config"]
    assert written["max_seq_len"] == written["max_input_len"] == 2048
    assert written["dtype"] == "float16"
    assert engine.config.build_info.tensorrt_version is None
    assert not list(engine.path.glob("*.engine"))


def test_engine_files_are_readable_by_others(checkpoint: Path, tmp_path: Path) -> None:
    engine = build(checkpoint, tmp_path / "e", limits(executors=("torch",)), SPARSE)
    for file in (engine.path, *engine.path.iterdir()):
        assert file.stat().st_mode & 0o004, file


@pytest.mark.parametrize(
    ("build_changes", "sparse_changes", "message"),
    [
        ({"max_seq_len": 4096}, {}, r"4096 exceeds the 2048 positions .* --max_seq_len 2048"),
        ({"max_input_len": 4096}, {}, r"max_input_len 4096 exceeds max_seq_len 2048"),
        ({"max_num_tokens": 8}, {}, r"rectify_interval 32 exceeds max_num_tokens 8"),
    ],
)
def test_limits_that_do_not_fit_are_refused(
    build_changes: dict, sparse_changes: dict, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    sparse = SparseAttentionConfig(**sparse_changes)
    with pytest.raises(ConfigError, match=message):
        build(checkpoint, tmp_path / "engine", limits(**build_changes), sparse)
    assert not list(tmp_path.iterdir())


def test_an_engine_is_replaced_only_when_told(checkpoint: Path, tmp_path: Path) -> None:
    output, torch_only = tmp_path / "engine", limits(executors=("torch",))
    build(checkpoint, output, torch_only, SPARSE)
    with pytest.raises(EngineError, match="--overwrite"):
        build(checkpoint, output, torch_only, SPARSE)
    (output / "left_over").touch()
    build(checkpoint, output, torch_only, SPARSE, overwrite=True)
    assert not (output / "left_over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_other_files_are_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(EngineError, match="not an engine"):
        build(checkpoint, tmp_path, limits(executors=("torch",)), SPARSE, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "checkpoint")
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        build(source, tmp_path / "engine", limits(), SPARSE)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "checkpoint", num_hidden_layers=24)
    command = [sys.executable, "-m", "trt_resa.cli", "build-engine", "--checkpoint_dir", source]
    process = subprocess.Popen(
        [*command, "--output_dir", tmp_path / "engine"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".engine.partial-*/segment_002.engine")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_figures_of_a_dry_run(checkpoint: Path) -> None:
    planned = plan(checkpoint, limits(), SPARSE)
    stored = sum(tensor.numel() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert planned.weight_bytes == 2 * stored
    # 2 layers, K and V of 2 heads of 64 in fp16, and summaries of that over blocks of 16
    assert report.kv_bytes_per_token(planned) == 2 * 2 * 2 * 64 * 2 * (1 + 1 / 16)
    free = 24 * 2**30 - planned.weight_bytes
    assert report.cache_tokens(planned, 24) == int(0.9 * free / 1088)
    assert report.cache_tokens(planned, 1e-3) == 0


MEMORY_SCRIPT = """
import sys
import trt_resa.builder.rtx
from trt_resa.builder.build import build
from trt_resa.builder.plan import plan
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.tables import segment_bytes
def peak():  # not ru_maxrss, which begins with that of the process that started this one
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
checkpoint, output = sys.argv[1:]
planned = plan(checkpoint, BuildConfig(), SparseAttentionConfig())
libraries = peak()
build(checkpoint, output, BuildConfig(), SparseAttentionConfig())
segment = max(map(segment_bytes, planned.network.segments()))
print(libraries, peak(), segment, planned.checkpoint.largest_shard_bytes(), planned.weight_bytes)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The bound of ``build``, and a narrower one that holding the whole model would break."""
    source = large_checkpoint(tmp_path / "checkpoint", layers=16)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, source, tmp_path / "engine"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    libraries, peak, segment, shard, weights = map(int, done.stdout.split())
    largest = max(segment, shard)
    assert weights > 300e6
    assert weights > 12 * largest
    assert peak < 2 * largest + (1 << 30), f"peak of {peak / 1e6:.0f} MB"
    assert peak - libraries < 2 * largest + 350e6, f"growth by {(peak - libraries) / 1e6:.0f} MB"
