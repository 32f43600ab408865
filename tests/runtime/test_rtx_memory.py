"""Mixed generation on a GPU for minutes: neither host nor device memory grows."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from tests.prompts import LONG_PROMPTS
from tests.runtime.mixed_load import Sample, run_mixed_load
from trt_resa import LLM

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SECONDS = float(os.environ.get("TRT_RESA_LOAD_SECONDS", "300"))
#: Share of the time in which graphs are captured, caches fill and allocators settle.
WARM_UP = 0.4
#: MiB from the first to the last quarter of the samples after that.
MOST_HOST, MOST_DEVICE = 16, 8


def growth(values: list[float]) -> float:
    """From the median of the first quarter of ``values`` to that of the last."""
    quarter = len(values) // 4
    assert quarter, f"{len(values)} samples are too few; raise TRT_RESA_LOAD_SECONDS"
    return statistics.median(values[-quarter:]) - statistics.median(values[:quarter])


def check_memory(samples: list[Sample]) -> None:
    settled = [sample for sample in samples if sample.seconds > WARM_UP * SECONDS]
    for name, most in (("host", MOST_HOST), ("device", MOST_DEVICE)):
        grown = growth([getattr(sample, name) for sample in settled])
        print(f"{name} memory grew by {grown:.1f} MiB")
        assert grown < most, [getattr(sample, name) for sample in samples]


def test_mixed_generation_does_not_take_ever_more_memory(smol_gpu_engine: Path) -> None:
    cache = {"max_tokens": 1 << 14}
    with LLM(smol_gpu_engine, executor="tensorrt_rtx", device="cuda", kv_cache_config=cache) as llm:
        samples, reasons = run_mixed_load(llm, LONG_PROMPTS, SECONDS)
        for sample in samples[:: len(samples) // 20 or 1]:
            print(sample)
        metrics = llm.metrics()
        print(dict(reasons), metrics)
        assert set(reasons) == {"length", "stop", "cancelled", "timeout"}
        assert metrics.kv_blocks_reused > 0
        assert (metrics.requests_active, metrics.requests_queued, metrics.kv_blocks_used) == (
            0,
        ) * 3
    check_memory(samples)
