"""``trt-resa inspect``: what it says of an engine directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import tiny_checkpoint
from trt_resa.builder.build import build
from trt_resa.cli import main
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import segment_engine

VERSION = pytest.importorskip("tensorrt_rtx").__version__


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("inspect")
    checkpoint = tiny_checkpoint(work / "tiny", "qwen2", num_hidden_layers=3)
    limits = BuildConfig(quantization="w4a16", max_num_tokens=128)
    return build(checkpoint, work / "engine", limits, SparseAttentionConfig()).path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *map(str, arguments)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_the_description(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(engine)])
    out = capsys.readouterr().out
    for text in ("qwen2, 3 layers", "12 of 13", "keep_ratio 0.1", "input_ids int32", "tensorrt_rtx",
                 "checkpoint"):  # fmt: skip
        assert text in out


def test_json_is_complete(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(engine), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["sparse_attention_config"]["block_size"] == 16
    assert found["build_info"]["checkpoint"] == "tiny"
    assert len(found["segments"]) == 4
    last = found["segments"][-1]
    assert last["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["R", "259"]}]
    assert last["files"]["segment_003.engine"] == (engine / segment_engine(3)).stat().st_size
    assert "layers" not in last


def test_no_engine_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not an engine directory" in refusal(capsys, tmp_path)


def test_layers_of_a_directory_without_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    limits = BuildConfig(executors=("torch",))
    path = build(checkpoint, tmp_path / "engine", limits, SparseAttentionConfig()).path
    capsys.readouterr()
    assert "leave out --layers" in refusal(capsys, path, "--layers")


def test_engines_of_another_version(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(engine, tmp_path / "engine")
    config = json.loads((copy / "config.json").read_text())
    config["build_info"]["tensorrt_version"] = "1.2.3.4"
    (copy / "config.json").write_text(json.dumps(config))
    line = refusal(capsys, copy, "--layers")
    assert f"built with tensorrt_rtx 1.2.3.4 and this is tensorrt_rtx {VERSION}" in line
    assert "build the engine again with trt-resa build-engine, or install" in line
    config["version"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    assert "has engine format version 1; this trt_resa reads version 2" in refusal(capsys, copy)


def test_a_file_that_is_no_engine_has_no_layers(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(engine, tmp_path / "engine")
    (copy / segment_engine(0)).write_bytes(b"not an engine" * 100)
    line = refusal(capsys, copy, "--layers")
    assert "could not load segment_000.engine" in line
    assert "leave out --layers" in line


@pytest.mark.gpu
def test_layers_on_a_gpu(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(engine), "--layers", "--json"])
    for segment in json.loads(capsys.readouterr().out)["segments"]:
        assert segment["layers"]
        assert all(layer["Name"] for layer in segment["layers"])
    main(["inspect", str(engine), "--layers"])
    assert "Layers of segment 3" in capsys.readouterr().out
