"""``benchmarks/simulate_serving.py``: forwards cost what they should, and every token comes."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.bench_serving import Load, measures
from benchmarks.simulate_serving import Costs, main, simulate
from trt_resa.contract import Phase
from trt_resa.runtime.schedule import Action, Forward, Rows

LOAD = Load(arrivals=[0.0, 0.1, 0.2, 5.0], contexts=[9000, 40_000, 20_000, 100_000])


def forward(phase: Phase, *spans: tuple[int, int]) -> Forward[int]:
    actions = (
        Action(phase, start, stop, Rows.LAST, prefill=stop - start > 32) for start, stop in spans
    )
    return Forward(phase, tuple(enumerate(actions)))


@pytest.mark.parametrize(
    ("phase", "spans", "ms"),
    [
        (Phase.SPARSE, [(99_999, 100_000)] * 2, 2.5 + 2 * 0.011 + 2 * 0.377),
        (Phase.DENSE, [(99_999, 100_000)] * 2, 2.9 + 2 * 1.87),
        (Phase.DENSE, [(99_968, 100_000)], 5.0 + 2.5),
        (Phase.DENSE, [(99_744, 100_000)], 14.5 + 0.7 * 25.6),
        (Phase.DENSE, [(49_968, 50_000), (99_776, 100_000)], 14.5 + 0.7 * 22.4 + 2.7 * 0.5),
        (Phase.DENSE, [(97_952, 100_000)], 43.9 + 0.7 * 204.8),
    ],
)
def test_what_a_forward_costs(phase: Phase, spans: list[tuple[int, int]], ms: float) -> None:
    assert Costs().ms(forward(phase, *spans)) == pytest.approx(ms)


@pytest.mark.parametrize("follow_up", [0, 128])
def test_every_token_comes_and_in_order(follow_up: int) -> None:
    for mode in ("dense", "fused", "separate", "none"):
        served = simulate(LOAD, mode, 200, follow_up, 512, 32_512, Costs())
        assert [len(request.tokens) for request in served] == [200] * 4
        assert all(np.diff(request.tokens).min() > 0 for request in served)
        assert all(request.tokens[0] > request.arrival for request in served)


def test_a_known_prompt_is_not_read_again() -> None:
    new, known = (
        measures(simulate(LOAD, "fused", 200, more, 512, 32_512, Costs())) for more in (0, 128)
    )
    assert known["reading_s"] < new["reading_s"] / 10


def test_fewer_rows_pause_less_and_read_more_slowly() -> None:
    few, many = (
        measures(simulate(LOAD, "fused", 200, 0, rows, 32_512, Costs())) for rows in (128, 1024)
    )
    assert few["between_tokens_ms"]["p99"] < many["between_tokens_ms"]["p99"]
    assert few["first_token_s"]["max"] > many["first_token_s"]["max"]


def test_the_command_prints_a_table_per_bound() -> None:
    load = ["--requests", "3", "--contexts", "300", "900", "--output_tokens", "40"]
    result = CliRunner().invoke(main, ["--rows", "64,256", *load], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.count("p99 by p50") == 2
    assert "dense_rows_while_decoding 256" in result.output
