"""``trt-resa bench``: arithmetic, steps, output and refusals; and on a GPU the whole command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from tests.builder.networks import tiny_model
from trt_resa import bench_cli
from trt_resa.cli import main
from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import Phase
from trt_resa.errors import ConfigError
from trt_resa.runtime import bench_report
from trt_resa.runtime.bench import DENSE_TOKENS, WINDOWS, Steps
from trt_resa.runtime.bench_cli import make_command
from trt_resa.runtime.bench_gaps import gap_share, step_profile
from trt_resa.runtime.bench_points import Point, parse_points
from trt_resa.runtime.bench_results import LoopTimes, Parts, PointResult
from trt_resa.runtime.executors.engine_loading import Linears, choose_linears
from trt_resa.shapes import SHAPES, shape

SPARSE = SparseAttentionConfig(rectify_interval=8, dense_below=0)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *map(str, arguments)])
    return int(stop.value.code or 0), capsys.readouterr().err


def test_points_are_batch_and_context() -> None:
    assert parse_points("1x32K, 8x65536,1X1m") == [
        Point(1, 32768),
        Point(8, 65536),
        Point(1, 1 << 20),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("32K", "'32K' is not batch x context; write it as 1x128K"),
        ("1x32K,", "'' is not batch x context"),
        ("0x32K", "is outside 1 to 256 sequences of 512 to 1,048,576 tokens"),
        ("1x2M", "is outside"),
        ("1x511", "is outside"),
        ("257x1K", "is outside"),
    ],
)
def test_bad_points_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_points(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --engine_dir DIR or --shape NAME"),
        (("--shape", "llama-3.1-8b", "--engine_dir", "x"), "give either"),
        (("--shape", "llama-3.1-8b", "--points", "many"), "is not batch x context"),
        (("--shape", "llama-3.1-8b", "--keep_ratio", "0"), "keep_ratio"),
        (("--shape", "gpt-5"), "shape 'gpt-5' is not known; choose from llama-3.1-8b"),
    ],
)
def test_bad_flags_are_one_error(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_shape_can_be_made_for_longer_contexts() -> None:
    assert shape("qwen3-8b").max_position_embeddings == 40960
    assert shape("qwen3-8b", 1 << 18).max_position_embeddings == 1 << 18
    assert shape("qwen3-8b", 1024) == SHAPES["qwen3-8b"]


@pytest.mark.parametrize(
    ("linears", "quantization", "capability", "built"),
    [
        ("auto", "w4a16", (8, 9), ("torch",)),
        ("auto", "none", (8, 9), ("tensorrt_rtx",)),
        ("auto", "none", (9, 0), ("torch",)),
        ("tensorrt", "w4a16", (9, 0), ("tensorrt_rtx",)),
        ("kernels", "w4a16", (9, 0), ("torch",)),
    ],
)
def test_what_will_run_is_all_that_is_built(
    linears: Linears,
    quantization: str,
    capability: tuple[int, int],
    built: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(bench_cli, "shape", lambda name, length: tiny_model(num_layers=4))
    asked: list[Any] = []

    def ask(name: str, path: Path, *how: Any) -> NoReturn:
        asked.extend(how)
        raise ConfigError("enough is known")

    flags = ["--points", "8x1K", "--linears", linears, "--quantization", quantization]
    command = make_command(ask, ["tiny"])
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        with pytest.raises(ConfigError, match="enough is known"):
            command.main(["--shape", "tiny", *flags], standalone_mode=False)
    engine = bench_cli._build_shape("tiny", tmp_path / "engine", *asked)
    build = engine.config.build_config
    assert build.executors == built
    assert (build.max_batch_size, build.max_seq_len, build.dtype) == (8, 1024, "bfloat16")
    chosen = choose_linears(linears, engine, capability)
    assert chosen == ("kernels" if built == ("torch",) else "tensorrt")


@pytest.mark.parametrize("together", [1, 3])
def test_a_fused_loop_is_windows_of_one_more_token_each_step(together: int) -> None:
    steps = Steps(Point(3, 512), np.arange(200, dtype=np.int32), SPARSE)
    at, tokens_of = 512 - (WINDOWS + 1) * 8, 3 * 8
    dense_rows = 0
    for kind, step in steps.fused(together):
        assert (kind == "window") == (step.phase is Phase.DENSE)
        if step.phase is Phase.SPARSE:
            dense_rows = 0
            at += 1
            assert step.kv_lens.tolist() == [at] * 3
            assert step.position_ids.tolist() == [at - 1] * 3
        else:
            if dense_rows == 0:
                at += 1
            dense_rows += step.num_tokens
            assert step.num_tokens == 8 * together
            assert step.kv_lens.tolist() == [at] * together
            assert step.position_ids[:8].tolist() == list(range(at - 8, at))
            assert dense_rows <= tokens_of
        assert step.block_table.shape[1] == -(-at // 16)
        assert step.input_ids[0] == -1 or step.input_ids[0] >= 0
    assert at == 512


def test_no_windows_where_sparse_steps_attend_to_everything() -> None:
    sparse = SparseAttentionConfig(rectify_interval=8, dense_below=512)
    steps = Steps(Point(3, 512), np.arange(200, dtype=np.int32), sparse)
    loops = steps.loops()
    assert set(loops) == {"dense", "fused"}
    forwards = list(loops["fused"])
    assert {(kind, step.phase) for kind, step in forwards} == {("sparse step", Phase.SPARSE)}
    at = [step.kv_lens.tolist() for _, step in forwards]
    assert at == [[length] * 3 for length in range(512 - (WINDOWS + 1) * 8 + 1, 513)]


def test_a_dense_loop_ends_at_the_context() -> None:
    steps = list(Steps(Point(2, 512), np.arange(64, dtype=np.int32), SPARSE).dense())
    assert len(steps) == DENSE_TOKENS
    assert steps[-1][1].kv_lens.tolist() == [512, 512]
    assert all(step.num_tokens == 2 for _, step in steps)


def test_a_prompt_is_read_in_chunks() -> None:
    steps = list(Steps(Point(2, 600), np.arange(80, dtype=np.int32), SPARSE).prefill(256))
    assert [step.num_tokens for step in steps] == [256, 256, 88]
    assert [step.kv_lens.tolist() for step in steps] == [[256], [512], [600]]
    assert steps[1].position_ids.tolist() == list(range(256, 512))


def test_time_per_token_counts_windows_once_and_drops_the_first() -> None:
    window = [("sparse step", 1.0)] * 7 + [("window", 4.0)] * 2
    cold = [("sparse step", 100.0)] * 7 + [("window", 1000.0)] * 2
    times = LoopTimes.of(cold + window * 3)
    assert times.tokens == 24
    assert times.total_ms == 3 * 15
    assert times.ms_per_token == 15 / 8
    assert times.p50_ms == {"sparse step": 1.0, "window": 4.0}
    dense = LoopTimes.of([("dense decode", 50.0)] + [("dense decode", 2.0)] * 7)
    assert dense.ms_per_token == 2.0


EVENTS = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("a", 5.0, 8.0), ("a", 9.0, 10.0)]


def results() -> list[PointResult]:
    dense = LoopTimes.of([("dense decode", 10.0)] * 8)
    fused = LoopTimes.of(([("sparse step", 4.0)] * 7 + [("window", 12.0)]) * 2)
    parts = {
        "sparse step": Parts(4.0, 2.5, {"sparse_step": 1.4}),
        "dense decode": Parts(10.0, 2.5, {"kv_append": 0.2, "dense_attention": 7.0}),
    }
    return [
        PointResult(
            1,
            context,
            {"dense": dense, "fused": fused},
            parts,
            {"cudnn": 6.0},
            step_profile(EVENTS),
        )
        for context in (32768, 131072)
    ]


def test_the_baseline_is_the_fastest_attention_measured() -> None:
    result = results()[0]
    assert result.dense_ms == 10.0
    assert result.best_dense_ms == pytest.approx(9.0)
    assert result.resa_ms == 5.0
    assert result.speedup("fused") == pytest.approx(1.8)
    assert result.parts["sparse step"].accounted == pytest.approx(0.975)


def test_gaps_are_what_no_kernel_covers() -> None:
    assert gap_share([]) == 0.0
    assert gap_share([(0, 2), (1, 3), (5, 8), (9, 10)]) == pytest.approx(0.3)
    assert gap_share([(0, 10), (2, 3)]) == 0.0
    found = step_profile(EVENTS)
    assert found.gaps == pytest.approx(0.3)
    assert found.busy == pytest.approx(0.8)
    assert found.kernels == {"a": (3, 6.0), "b": (1, 2.0)}
    assert step_profile([]).busy == 0.0


def test_json_table_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench_report.check_plot()
    bench_report.write_json(tmp_path / "a.json", {"gpu": "x"}, results())
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["gpu"] == "x"
    assert content["results"][1]["ms_per_token"] == {"dense": 10.0, "fused": 5.0}
    assert content["results"][0]["tokens_per_second"]["fused"] == 200.0
    bench_report.write_plot(tmp_path / "a.png", "title", results())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    loops = {name: LoopTimes.of([(name, 2.0)] * 8) for name in ("dense", "sparse step")}
    short = dataclasses.replace(
        results()[0], loops={"dense": loops["dense"], "fused": loops["sparse step"]}
    )
    table = bench_report.table([*results(), short], "t")
    assert list(table.columns[7].cells) == ["12.00", "12.00", "-"]


@pytest.mark.gpu
def test_the_command_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.runtime.rtx_engines import build_tiny

    build_tiny(tmp_path / "engine", "llama")
    output, plot = tmp_path / "a.json", tmp_path / "a.png"
    flags = ("--points", "1x512,3x1K", "--prefill", "--output", output, "--plot", plot)
    main(["bench", "--engine_dir", str(tmp_path / "engine"), *map(str, flags)])
    found = json.loads(output.read_text())["results"]
    assert [(point["batch"], point["context"]) for point in found] == [(1, 512), (3, 1024)]
    for point in found:
        assert point["ms_per_token"]["fused"] > 0
        assert point["first_token_s"] > 0
        assert 0 <= point["sparse_step_profile"]["gaps"] < 1
    assert set(found[1]["ms_per_token"]) == {"dense", "fused", "fused, windows together"}
    assert plot.is_file()
    assert "1,024" in capsys.readouterr().out
