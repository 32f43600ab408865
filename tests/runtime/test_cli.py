"""``trt-resa generate`` as a shell sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trt_resa.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        main(["generate", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_stats_and_comparison(tiny_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--engine_dir", tiny_engine, "--prompt", "x" * 100, "--max_tokens", 40)
    flags = ("--device", "cpu", "--ignore_eos", "true", "--stats", "--compare", "dense")
    code, out, err = run(capsys, *common, *flags, "--rectify_mode", "verify")
    assert code == 0
    assert out.endswith("\n")
    assert "100 prompt tokens, 40 new tokens" in err
    assert re.search(r"sparse steps attended to \d+\.\d% of the blocks, \d+ dense passes", err)
    drafts = r"\d+ of \d+ drafts accepted \(\d+\.\d%\), \d+\.\d of \d+\.\d per verification"
    assert re.search(drafts, err)
    drift = r"of \d+ sampled sparse steps \d+\.\d% agree with dense; KL to dense \d+\.\d{4} nats"
    assert re.search(drift, err)
    assert "identical to dense in all 40 tokens" in err
    code, _, err = run(capsys, *common, *flags, "--rectify_mode", "none", "--min_blocks", 1)
    assert code == 0
    assert "first difference from dense at token" in err


def test_several_prompts_and_files(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("from a file", encoding="utf-8")
    flags = ("--engine_dir", tiny_engine, "--device", "cpu", "--max_tokens", 4, "--chat")
    code, out, _ = run(capsys, *flags, "--prompt", "one", "--prompt_file", file, "--n", 2)
    assert code == 0
    assert [line for line in ("[0.0]", "[0.1]", "[1.0]", "[1.1]") if line not in out] == []


def test_flags_win_over_the_yaml(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "resa.yaml"
    config.write_text("sparse_attention_config:\n  rectify_mode: dense\n")
    common = ("--engine_dir", tiny_engine, "--device", "cpu", "--prompt", "x" * 90, "--stats")
    _, _, err = run(capsys, *common, "--config", config, "--ignore_eos", "true")
    assert " 0 sparse steps" in err
    _, _, err = run(
        capsys, *common, "--config", config, "--ignore_eos", "true", "--rectify_mode", "none"
    )
    assert " 31 sparse steps" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--keep_ratio", "1.5"], "keep_ratio = 1.5"),
        (["--prompt", "x", "--keep_ratio", "0"], "keep_ratio = 0"),
        (["--prompt", "x" * 3000], "the prompt has 3000 tokens; this engine takes at most"),
        (["--prompt", "x", "--temperature", "-1"], "temperature = -1"),
        (["--prompt", "x", "--kv_cache_free_gpu_memory_fraction", "2"], "free_gpu_memory_fraction"),
        ([], "no prompt was given"),
        (["--prompt_file", "/does/not/exist"], "cannot be read"),
        (["--prompt", "x", "--config", "{yaml}"], "unknown key 'temperatur'"),
        (["--prompt", "x", "--rectify_mode", "maybe"], "'maybe' is not one of"),
        (["--prompt", "x", "--no_such_flag"], "--no_such_flag"),
        (["--prompt", "", "--max_tokens", "3"], "the prompt is empty"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tiny_engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    yaml = tmp_path / "bad.yaml"
    yaml.write_text("temperatur: 1\n")
    arguments = [argument.replace("{yaml}", str(yaml)) for argument in arguments]
    code, _, err = run(capsys, "--engine_dir", tiny_engine, "--device", "cpu", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("trt-resa: error: ")
    assert err.count("\n") == 1


def test_a_missing_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--engine_dir", tmp_path, "--prompt", "x")
    assert code == 2
    assert "is not an engine directory" in err
