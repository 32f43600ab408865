"""``trt-resa build-engine``: flags, YAML and their precedence, refusals, the dry run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints import edit_config, tiny_checkpoint
from trt_resa.cli import main
from trt_resa.engine_dir import EngineDirectory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("llama"))


def run(*arguments: object) -> None:
    main(["build-engine", *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_flags_win_over_yaml_and_yaml_over_defaults(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(
        "executors: [torch]\nmax_batch_size: 2\nmax_seq_len: 512\n"
        "sparse_attention_config:\n  algorithm: resa\n  keep_ratio: 0.25\n  min_blocks: 4\n"
    )
    output = tmp_path / "an engine"
    run("--checkpoint_dir", checkpoint, "--output_dir", output, "--config", config,
        "--max_seq_len", 1024, "--keep_ratio", 0.5)  # fmt: skip
    engine = EngineDirectory(output)
    build, sparse = engine.config.build_config, engine.config.sparse_attention_config
    assert (build.executors, build.max_batch_size, build.max_seq_len) == (("torch",), 2, 1024)
    assert build.max_num_tokens == 2048
    assert (sparse.keep_ratio, sparse.min_blocks, sparse.sink_blocks) == (0.5, 4, 0)
    captured = capsys.readouterr()
    assert "1,024 tokens" in captured.out
    assert f"trt-resa generate --engine_dir '{output}' --prompt" in captured.out
    assert captured.err == "", "the progress bar shows on a terminal alone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep_ratio", 2], "keep_ratio = 2.0: input should be less than or equal to 1"),
        (["--max_batch_size", 0], "max_batch_size = 0: input should be greater than"),
        (["--local_blocks", 9, "--min_blocks", 4], "exceeds min_blocks = 4"),
        (["--dtype", "float32"], "dtype float32 is for the torch executor alone"),
        (["--rectify_interval", 64, "--max_num_tokens", 32], "raise --max_num_tokens or lower"),
        (["--compute_capabilities", "80,90"], "'90' is not supported; choose from 80,86,89,120"),
        (["--gpu_memory_gb", "much"], "give GB of memory such as 24,80"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml cannot be read"),
        ([], "--output_dir is missing; give a directory to write, or --dry_run"),
        (
            ["--output_dir", "/no/such", "--executors", "torch"],
            "checkpoint /no/such does not exist",
        ),
    ],
)
def test_flags_are_refused_before_a_checkpoint_is_read(
    arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "--checkpoint_dir", "/no/such", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_batch: 4", "unknown key 'max_batch'; allowed keys: dtype, quantization, executors"),
        (
            "sparse_attention_config: {sparsity: 0.9}",
            "unknown key 'sparse_attention_config.sparsity'",
        ),
        ("sparse_attention_config: {keep_ratio: 7}", "keep_ratio = 7: input should be less"),
        ("sparse_attention_config: 3", "sparse_attention_config must hold keys and values"),
        ("max_batch_size: [", "cannot be read"),
    ],
)
def test_yaml_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(content)
    line = refusal(capsys, "--checkpoint_dir", "/no/such", "--config", config)
    assert message in line
    assert str(config) in line


@pytest.mark.parametrize("flag", ["--max_batch_size=many", "--no_such_flag=1", "--dtype=int3"])
def test_a_flag_that_cannot_be_parsed(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--checkpoint_dir", "/no/such", flag)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert flag.split("=")[0] in errors.splitlines()[-1]


def truncate(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


def remove_a_shard(checkpoint: Path) -> None:
    max(checkpoint.glob("model-*.safetensors")).unlink()


def spoil_a_weight(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.safetensors"))
    tensors = load_file(shard)
    next(iter(tensors.values())).view(-1)[7] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated shard": (truncate, "model-0000"),
    "missing shard": (remove_a_shard, "model-0000"),
    "NaN": (spoil_a_weight, "NaN"),
    "other shape": (lambda path: edit_config(path, intermediate_size=400), "has shape [384, 256]"),
    "unknown model": (lambda path: edit_config(path, model_type="gpt2"), "gpt2"),
    "head size": (lambda path: edit_config(path, head_dim=80), "head_dim 80 is not supported"),
    "broken JSON": (lambda path: (path / "config.json").write_text("{"), "config.json"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_and_nothing_is_left(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = BAD_CHECKPOINTS[kind]
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", shards=3)
    spoil(checkpoint)
    capsys.readouterr()
    flags = ("--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "out" / "engine")
    assert message in refusal(capsys, *flags, "--executors", "torch")
    assert not list((tmp_path / "out").glob("**/*"))


def test_without_tensorrt_the_way_out_is_said(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    for name in ("trt_resa.rtx", "trt_resa.builder.rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    line = refusal(capsys, "--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "engine")
    assert "pip install 'tensorrt-rtx-cu13" in line
    assert "--executors torch" in line
    run("--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "engine", "--executors", "torch")


def test_a_dry_run_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(checkpoint.iterdir())
    output = tmp_path / "engine"
    run("--checkpoint_dir", checkpoint, "--output_dir", output, "--dry_run",
        "--gpu_memory_gb", "0.001,24")  # fmt: skip
    out = capsys.readouterr().out
    for text in ("input_ids", "logits float32", "KV cache per token", "1.1 kB", "too small",
                 "GPU of 24 GB", "nothing was written"):  # fmt: skip
        assert text in out
    assert not list(tmp_path.iterdir())
    assert sorted(checkpoint.iterdir()) == before


def test_the_timing_cache_is_said_to_be_ignored(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "engine", "--executors",
        "torch", "--timing_cache", tmp_path / "cache")  # fmt: skip
    assert "--timing_cache is ignored" in caplog.text
    assert not (tmp_path / "cache").exists()
