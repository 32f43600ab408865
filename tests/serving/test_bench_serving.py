"""``benchmarks/bench_serving.py``: its arithmetic, and a run on the torch executor."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import bench_serving
from benchmarks.bench_serving import FOLLOW_UP, NEW, Followed, Load, measures
from tests.builder.networks import tiny_model

ARGUMENTS = ["--requests", "4", "--contexts", "40", "200", "--output_tokens", "20", "--rate", "100"]


def run(output: Path, *arguments: object) -> list[dict[str, Any]]:
    command = [*ARGUMENTS, *map(str, arguments), "--output", str(output)]
    result = CliRunner().invoke(bench_serving.main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.output
    written: dict[str, Any] = json.loads(output.read_text())
    assert sorted(written["contexts"]) == [40, 68, 117, 200]
    results: list[dict[str, Any]] = written["results"]
    return results


def test_two_turns_of_each_mode(tiny_engine: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "out.json", "--engine_dir", tiny_engine, "--follow_up", 16)
    assert [(item["mode"], item["turn"]) for item in results] == [
        ("dense", NEW),
        ("dense", FOLLOW_UP),
        ("fused", NEW),
        ("fused", FOLLOW_UP),
    ]
    for item in results:
        assert item["tokens"] == 4 * 20
        assert item["seconds"] == pytest.approx(item["reading_s"] + item["decoding_s"])
        # A follow-up finds the whole blocks of its prompt, a new prompt finds nothing.
        found = sum(context // 16 for context in (40, 68, 117, 200))
        assert item["kv_blocks_reused"] == (found if item["turn"] == FOLLOW_UP else 0)
        assert (item["sparse_steps"] > 0) == (item["mode"] == "fused")


def test_a_shape_of_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serving, "shape", lambda name, longest: tiny_model("qwen2"))
    shape = ("--shape", "qwen2.5-7b", "--follow_up", 0, "--modes", "fused")
    (item,) = run(tmp_path / "out.json", *shape, "--dense_rows_while_decoding", 40)
    assert (item["turn"], item["tokens"]) == (NEW, 80)
    # No dense pass takes more rows than that once the first request decodes.
    assert item["dense_passes"] > 5


def test_every_mode_gets_the_same_load() -> None:
    load = Load.spread(16, 8192, 131072, 4.0, random.Random(3))
    assert load == Load.spread(16, 8192, 131072, 4.0, random.Random(3))
    assert (min(load.contexts), max(load.contexts)) == (8192, 131072)
    assert load.arrivals[0] == 0.0
    assert load.arrivals == sorted(load.arrivals)


def test_what_is_measured_of_two_requests() -> None:
    found = measures(
        [
            Followed(arrival=0.0, tokens=[1.0, 1.1, 1.2, 4.2, 4.3]),
            Followed(arrival=2.0, tokens=[3.0, 3.1, 5.0]),
        ]
    )
    assert found["tokens"] == 8
    assert found["tokens_per_s"] == pytest.approx(8 / 5)
    assert (found["reading_s"], found["decoding_s"]) == (2.0, 3.0)
    # All but the first tokens, which end a reading.
    assert found["decoding_tokens_per_s"] == pytest.approx(6 / 3)
    # From 3.0 to 4.3: at 3.1, 4.2 and 4.3.
    assert found["all_decode_s"] == pytest.approx(1.3)
    assert found["all_decode_tokens_per_s"] == pytest.approx(3 / 1.3)
    assert found["first_token_s"]["max"] == pytest.approx(1.0)
    assert found["between_tokens_ms"]["max"] == pytest.approx(3000)
    assert found["between_tokens_ms"]["p50"] == pytest.approx(100)
    # The gap of 3 s spans the reading of the other prompt.
    assert found["between_tokens_decoding_ms"]["max"] == pytest.approx(1900)


def test_nothing_is_measured_where_nothing_is() -> None:
    found = measures([Followed(0.0, [1.0, 2.0]), Followed(1.5, [2.5, 2.6])])
    assert (found["all_decode_s"], found["all_decode_tokens_per_s"]) == (0.0, None)
    assert found["between_tokens_decoding_ms"]["max"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "dense,quick", "--shape", "qwen2.5-7b"], "'dense,quick' must name modes"),
        ([], "give either --engine_dir DIR or --shape NAME"),
        (["--rate", "0", "--shape", "qwen2.5-7b"], "0"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(bench_serving.main, arguments)
    assert result.exit_code == 2
    assert message in result.output
