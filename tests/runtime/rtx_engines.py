"""Random engines for the executor tests, and sequences that share one cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.builder.networks import tiny_model
from trt_resa.blocks import num_blocks
from trt_resa.builder.random_engine import build_random
from trt_resa.config import BuildConfig, KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import Phase, Step, max_logit_rows
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.executors.base import Executor, Limits
from trt_resa.runtime.executors.buckets import ForwardShape
from trt_resa.runtime.executors.engine_loading import Linears
from trt_resa.runtime.executors.gpu_executor import GpuExecutor

SPARSE = SparseAttentionConfig(min_blocks=4, rectify_interval=8, keep_ratio=0.25, dense_below=0)
MAX_SEQ_LEN = 1024
#: What an executor of engines is tested on: arguments of ``build_tiny`` by family and kind.
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"dtype": "bfloat16"},
    "qwen3": {},
    "llama-int4": {"quantization": "w4a16"},
}
#: Relative error of logits; bfloat16 keeps 8 bits of a number.
ERROR_BOUND = {torch.float16: 1e-2, torch.bfloat16: 6e-2}


def build_tiny(path: Path, family: str, **build: Any) -> EngineDirectory:
    config = BuildConfig(
        max_batch_size=4,
        max_num_tokens=256,
        max_seq_len=MAX_SEQ_LEN,
        **{"executors": ("tensorrt_rtx", "torch"), "dtype": "float16", **build},
    )
    return build_random(f"tiny-{family}", tiny_model(family), path, config, SPARSE)


def limits_of(engine: EngineDirectory, **changes: int) -> Limits:
    build = engine.config.build_config
    values = dict(
        max_batch_size=build.max_batch_size,
        max_seq_len=MAX_SEQ_LEN,
        max_input_len=MAX_SEQ_LEN,
        max_num_tokens=build.max_num_tokens,
        max_logit_rows=max_logit_rows(build.max_batch_size, SPARSE.rectify_interval),
    )
    return Limits(**{**values, **changes})


def executors(
    engine: EngineDirectory,
    sparse: SparseAttentionConfig = SPARSE,
    graphs: bool = True,
    linears: Linears = "tensorrt",
) -> tuple[Executor, Executor]:
    """The engine under test, and the same weights in plain PyTorch on the same GPU."""
    from trt_resa.runtime.executors.rtx_executor import RtxExecutor
    from trt_resa.runtime.executors.torch_executor import TorchExecutor

    device, limits, cache = torch.device("cuda"), limits_of(engine), KvCacheConfig()
    dtype = getattr(torch, engine.config.build_config.dtype)
    return (
        RtxExecutor(engine, sparse, cache, limits, device, linears, graphs),
        TorchExecutor(engine, sparse, cache, limits, device, dtype),
    )


class Batch:
    """Sequences in scattered blocks of a pool; the same steps for every executor."""

    def __init__(self, count: int, vocab: int, pool: int, block_size: int = 16) -> None:
        random = np.random.default_rng(0)
        self.block_size = block_size
        room = num_blocks(MAX_SEQ_LEN, block_size)
        order = random.permutation(pool).astype(np.int32)
        assert count * room <= pool
        self._blocks = [order[i * room : (i + 1) * room] for i in range(count)]
        self.tokens = [random.integers(0, vocab, MAX_SEQ_LEN).tolist() for _ in range(count)]

    def step(
        self, phase: Phase, spans: dict[int, tuple[int, int]], all_logits: bool = False
    ) -> Step:
        """Rows [start, stop) of each sequence in ``spans``."""
        ids = [t for seq, (a, b) in spans.items() for t in self.tokens[seq][a:b]]
        lengths = [b - a for a, b in spans.values()]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        width = max(num_blocks(b, self.block_size) for _, b in spans.values())
        table = np.full((len(spans), width), -1, dtype=np.int32)
        for row, (seq, (_, stop)) in enumerate(spans.items()):
            used = num_blocks(stop, self.block_size)
            table[row, :used] = self._blocks[seq][:used]
        rows = np.arange(len(ids), dtype=np.int32) if all_logits else bounds[1:] - np.int32(1)
        return Step(
            phase=phase,
            input_ids=np.array(ids, dtype=np.int32),
            position_ids=np.concatenate(
                [np.arange(a, b, dtype=np.int32) for a, b in spans.values()]
            ),
            cu_query_lens=bounds,
            kv_lens=np.array([b for _, b in spans.values()], dtype=np.int32),
            block_table=table,
            logit_rows=rows,
        )


def a_loop(batch: Batch) -> Iterator[Step]:
    """Chunked prefill of two sequences, windows of sparse steps, rectification, verification; a
    third sequence joins, the first leaves."""
    for start, stop in ((0, 200), (200, 300)):
        yield batch.step(Phase.DENSE, {0: (start, stop)})
    yield batch.step(Phase.DENSE, {1: (0, 60), 2: (0, 45)})
    at = {0: 300, 1: 60, 2: 45}
    for turn in range(20):
        members = (0, 1) if turn < 6 else (0, 1, 2) if turn < 13 else (1, 2)
        yield batch.step(Phase.SPARSE, {seq: (at[seq], at[seq] + 1) for seq in members})
        for seq in members:
            at[seq] += 1
        if turn % 7 == 6:
            for seq in members:
                yield batch.step(Phase.DENSE, {seq: (at[seq] - 7, at[seq])}, all_logits=turn == 6)
    yield batch.step(Phase.DENSE, {seq: (at[seq], at[seq] + 1) for seq in (1, 2)})


def chunks(batch: Batch, prompts: dict[int, int], rows: int) -> Iterator[Step]:
    """Prompts of so many tokens, read in turn; a row of each sequence before goes with a chunk."""
    for seq, length in prompts.items():
        for start in range(0, length, rows):
            spans = {other: (prompts[other], prompts[other] + 1) for other in range(seq)}
            yield batch.step(Phase.DENSE, {**spans, seq: (start, min(start + rows, length))})


def check_captures_of_chunks(graphs: GpuExecutor, single: GpuExecutor) -> None:
    """A chunk is captured on the second of its shape and has the bits of single launches; later
    prompts of other lengths capture nothing."""
    batch = Batch(4, graphs.model.vocab_size, graphs.num_blocks)
    seen: Counter[ForwardShape] = Counter()
    for step in chunks(batch, {0: 700, 1: 650, 2: 690, 3: 600}, 150):
        assert torch.equal(graphs.forward(step), single.forward(step))
        seen[graphs.buckets.shape_of(step)] += 1
        assert graphs.captures == sum(count > 1 for count in seen.values())
    captured = graphs.captures
    assert 1 < captured < len(seen), "no shape came once, or none recurred"
    for step in chunks(batch, {0: 900, 1: 900, 2: 750, 3: 900}, 150):
        assert torch.equal(graphs.forward(step), single.forward(step))
    assert graphs.captures == captured
    assert single.captures == 0


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
