"""``trt-resa tune`` as a shell sees it, against trying every keep_ratio by other means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from trt_resa.cli import main
from trt_resa.runtime.quality.forcing import ForcedText, ForcingLLM, Observer
from trt_resa.runtime.quality.tune import KEEP_RATIOS
from trt_resa.sampling_params import SamplingParams

TEXTS = ["a lighthouse keeper finds a letter " * 8, "bread rises because of yeast. " * 12]
NEW = 40
FLAGS = ("--device", "cpu", "--kv_cache_max_tokens", "8192", "--min_blocks", "1")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tune") / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in TEXTS))
    return file


@pytest.fixture(scope="module")
def agreements(tiny_engine: Path) -> list[float]:
    """Of every keep_ratio in KEEP_RATIOS: how often its likeliest token is the dense answer's."""
    found = []
    with ForcingLLM(tiny_engine, device="cpu", kv_cache_config={"max_tokens": 8192}) as llm:
        assert llm.tokenizer is not None
        prompts = [llm.tokenizer.encode(text) for text in TEXTS]
        params = SamplingParams(max_tokens=NEW, ignore_eos=True)
        dense = llm.generate(prompts, params, rectify_mode="dense")
        texts = [
            ForcedText([*prompt, *request.outputs[0].token_ids], len(prompt))
            for prompt, request in zip(prompts, dense, strict=True)
        ]
        for ratio in KEEP_RATIOS:
            said: list[tuple[int, int]] = []
            observers = [_pairs(text, said) for text in texts]
            llm.force(texts, observers, {"keep_ratio": ratio, "min_blocks": 1})
            found.append(sum(mine == theirs for mine, theirs in said) / len(said))
    return found


def _pairs(text: ForcedText, said: list[tuple[int, int]]) -> Observer:
    return lambda index, _, row: said.append((int(row.argmax()), text.forced[index]))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        main(["tune", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("wanted", [4, 7, len(KEEP_RATIOS) - 1])
def test_it_finds_the_fewest_blocks_that_agree(
    tiny_engine: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    agreements: list[float],
    wanted: int,
) -> None:
    """The target is the agreement of keep_ratio number ``wanted``."""
    target = agreements[wanted]
    passing = [agreement >= target for agreement in agreements]
    first = passing.index(True)
    if passing[first:] != [True] * (len(passing) - first):
        pytest.fail(f"pick another text, agreement is not monotone here: {agreements}")
    output = tmp_path / "tuned.yaml"
    code, out, err = run(
        capsys, "--engine_dir", tiny_engine, *FLAGS, "--prompts", prompts, "--max_tokens", NEW,
        "--rectify_interval", 8, "--dense_below", 0, "--agreement", target, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    section = yaml.safe_load(output.read_text())["sparse_attention_config"]
    assert section["rectify_interval"] == 8
    assert section["min_blocks"] == 1
    assert section["rectify_mode"] == "fused"
    # Measured, so that it is as near as asked; and the edge itself is among the trials, so that
    # only another one that was measured faster can have been taken instead.
    assert agreements[KEEP_RATIOS.index(section["keep_ratio"])] >= target
    tried = [line.split("keep_ratio ")[1].split(",")[0] for line in err.splitlines()
             if "keep_ratio" in line]  # fmt: skip
    assert str(KEEP_RATIOS[first]) in tried
    if first:
        assert str(KEEP_RATIOS[first - 1]) in tried
    assert "chosen" in out
    # `generate` takes the file.
    main(["generate", "--engine_dir", str(tiny_engine), "--device", "cpu", "--prompt", "x" * 90,
          "--max_tokens", "4", "--config", str(output)])  # fmt: skip


def test_time_without_a_limit_gives_the_dense_output(
    tiny_engine: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tuned.yaml"
    code, _, err = run(
        capsys, "--engine_dir", tiny_engine, *FLAGS, "--prompts", prompts, "--max_tokens", NEW,
        "--time_per_token_ms", 1e6, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    assert yaml.safe_load(output.read_text())["sparse_attention_config"]["keep_ratio"] == 1.0
    assert "agreement 100.00%" in output.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one target"),
        (["--agreement", "0.9", "--time_per_token_ms", "5"], "give one target"),
        (["--agreement", "1.1"], "1.1 is not in the range"),
        (["--agreement", "0.9", "--rectify_mode", "verify"], "leaves nothing to tune"),
        (["--agreement", "0.9", "--max_tokens", "3000"], "max_seq_len is 2048"),
        (["--agreement", "0.9", "--prompts", "/does/not/exist"], "cannot be read"),
        (["--time_per_token_ms", "1e-9", "--max_trials", "2"], "none of 2 trials reached"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tiny_engine: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    output = tmp_path / "tuned.yaml"
    code, _, err = run(
        capsys, "--engine_dir", tiny_engine, *FLAGS, "--prompts", prompts, "--max_tokens", 8,
        "--output", output, *arguments,
    )  # fmt: skip
    assert code == 2
    last = err.splitlines()[-1]
    assert message in last
    assert last.startswith("trt-resa: error: ")
    assert "Traceback" not in err
    assert not output.exists()


def test_a_dense_below_that_leaves_nothing_to_tune_is_lowered(
    tiny_engine: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an engine's default can be, where the prompts are shorter."""
    config, output = tmp_path / "base.yaml", tmp_path / "tuned.yaml"
    config.write_text(yaml.safe_dump({"sparse_attention_config": {"dense_below": 8192}}))
    code, _, err = run(
        capsys, "--engine_dir", tiny_engine, *FLAGS, "--prompts", prompts, "--max_tokens", NEW,
        "--agreement", 0.01, "--config", config, "--max_trials", 1, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    assert yaml.safe_load(output.read_text())["sparse_attention_config"]["dense_below"] == 0
