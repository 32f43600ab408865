"""Latency of decoding by context, batch and mode, on an engine and a cache filled with noise.

A point is measured as users meet it: the host submits forwards one ahead, sequences grow, tokens
are fed back on the device and read behind, and each window ends with its dense pass. Beside that,
graphs of parts of a step account for its time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import Phase, Step, max_logit_rows
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.bench_baseline import sdpa_ms
from trt_resa.runtime.bench_gaps import profile_replay
from trt_resa.runtime.bench_points import Point
from trt_resa.runtime.bench_results import LoopTimes, Parts, PointResult
from trt_resa.runtime.bench_timing import replay_ms
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import ForwardShape
from trt_resa.runtime.executors.engine_loading import Linears
from trt_resa.runtime.executors.forward_program import ForwardProgram
from trt_resa.runtime.executors.rtx_executor import ALL_PARTS, SEGMENTS, RtxExecutor

#: Windows measured per point, after one that is not.
WINDOWS = 3
#: Tokens of the dense baseline per point.
DENSE_TOKENS = 24
REPLAYS = 12


class Bench:
    """An executor for the largest of ``points``, with every block of its cache filled.

    Raises EngineError or RequestError where the executor does.
    """

    def __init__(
        self,
        engine: EngineDirectory,
        linears: Linears,
        sparse: SparseAttentionConfig,
        kv_cache: KvCacheConfig,
        points: list[Point],
    ) -> None:
        build, built = engine.config.build_config, engine.config.sparse_attention_config
        batch = max(point.batch for point in points)
        longest = max(point.context for point in points)
        limits = Limits(
            max_batch_size=batch,
            max_seq_len=longest,
            max_input_len=longest,
            max_num_tokens=build.max_num_tokens,
            max_logit_rows=max_logit_rows(build.max_batch_size, built.rectify_interval),
        )
        most = max(p.batch * num_blocks(p.context, sparse.block_size) for p in points)
        cache = KvCacheConfig(
            free_gpu_memory_fraction=kv_cache.free_gpu_memory_fraction,
            max_tokens=most * sparse.block_size,
        )
        self.sparse, self._fraction = sparse, kv_cache.free_gpu_memory_fraction
        self.executor = RtxExecutor(engine, sparse, cache, limits, torch.device("cuda"), linears)
        _fill(self.executor)
        order = np.random.default_rng(0).permutation(self.executor.num_blocks)
        self._order = order.astype(np.int32)
        self._captured: set[ForwardShape] = set()

    def fits(self, point: Point) -> bool:
        needed = point.batch * num_blocks(point.context, self.sparse.block_size)
        return needed <= self.executor.num_blocks

    def shortage(self, point: Point) -> str:
        """Why a point does not fit, in GB."""
        model, size = self.executor.model, self.sparse.block_size
        per_token = model.kv_bytes_per_token(size, self.executor.dtype.itemsize)
        needed = point.batch * point.context * per_token / 1e9
        held = self.executor.num_blocks * size * per_token / 1e9
        return f"its KV cache takes {needed:.1f} GB and {held:.1f} GB are there"

    @property
    def most_tokens(self) -> int:
        """Tokens of KV cache that would fit into the memory left beside weights and activations."""
        executor = self.executor
        cache = sum(t.nbytes for t in (*executor.cache.kv, *executor.cache.summary))
        free = torch.cuda.mem_get_info()[0] + cache
        block = cache / executor.num_blocks
        return int(free * self._fraction / block) * self.sparse.block_size

    def measure(self, point: Point, prefill: bool = False) -> PointResult:
        """``prefill``: also read a prompt of the point's length, which can take minutes."""
        steps = Steps(point, self._order, self.sparse)
        loops = {name: self._loop(loop) for name, loop in steps.loops().items()}
        # Parts come after the loops: a loop has filled the inputs that they run on.
        parts, executor = {}, self.executor
        for name, (shape, step) in steps.samples(executor).items():
            executor.submit(step)
            parts[name] = self._parts(shape)
        sparse = steps.samples(executor)["sparse step"][1]
        executor.submit(sparse)
        program = executor.program(executor.buckets.shape_of(sparse))
        profile = profile_replay(program, executor.stream)
        first = self._prefill_s(steps) if prefill else None
        sdpa = sdpa_ms(executor.model, executor.dtype, point.batch, point.context)
        return PointResult(point.batch, point.context, loops, parts, sdpa, profile, first)

    def _loop(self, loop: Iterator[tuple[str, Step]]) -> LoopTimes:
        """Time of each forward between the ends of its predecessor and its own, on the GPU."""
        stream = self.executor.stream
        ends: list[tuple[str, torch.cuda.Event]] = []
        behind = None
        for kind, step in loop:
            self._capture(step)
            submitted = self.executor.submit(step)
            end = torch.cuda.Event(enable_timing=True)
            end.record(stream)
            ends.append((kind, end))
            if behind is not None:
                behind.get()
            behind = submitted.tokens()
        stream.synchronize()
        times = [
            (kind, before.elapsed_time(end))
            for (_, before), (kind, end) in itertools.pairwise(ends)
        ]
        return LoopTimes.of(times)

    def _prefill_s(self, steps: Steps) -> float:
        """Seconds from the first chunk of a prompt to its first token."""
        chunks = list(steps.prefill(self.executor.limits.max_num_tokens))
        for step in chunks:
            self._capture(step)
        self.executor.stream.synchronize()
        start = time.perf_counter()
        submitted = None
        for step in chunks:
            submitted = self.executor.submit(step)
        assert submitted is not None
        submitted.tokens().get()
        return time.perf_counter() - start

    def _capture(self, step: Step) -> None:
        """Let a shape that is new have its graph: a chunk is captured in its second run."""
        shape = self.executor.buckets.shape_of(step)
        if shape not in self._captured:
            self._captured.add(shape)
            self.executor.submit(step)
            self.executor.submit(step)

    @torch.inference_mode()
    def _parts(self, shape: ForwardShape) -> Parts:
        """Milliseconds of a replayed graph of all launches, and of graphs of some of them."""
        executor = self.executor
        kernels = [name for name in ALL_PARTS if name != SEGMENTS]

        def parts_ms(parts: tuple[str, ...]) -> float:
            launches = list(executor.launches(shape, parts))
            if not launches:
                return 0.0
            program = ForwardProgram(launches, executor.stream, executor.graph_pool, True)
            return replay_ms(program.run, REPLAYS, executor.stream)

        whole = replay_ms(executor.program(shape).run, REPLAYS, executor.stream)
        segments = parts_ms((SEGMENTS,))
        by_kernel = {name: parts_ms((name,)) for name in kernels}
        return Parts(whole, segments, {name: ms for name, ms in by_kernel.items() if ms})


class Steps:
    """The forwards of a point."""

    def __init__(self, point: Point, order: np.ndarray, sparse: SparseAttentionConfig) -> None:
        self._point, self._interval, self._size = point, sparse.rectify_interval, sparse.block_size
        self._windows = point.context > sparse.dense_below
        room = num_blocks(point.context, sparse.block_size)
        self._tables = order[: point.batch * room].reshape(point.batch, room)

    def loops(self) -> dict[str, Iterator[tuple[str, Step]]]:
        """Forwards by mode; the first of each is a warm-up whose time is dropped.

        ``fused``: a dense pass per window; at contexts of at most dense_below, sparse steps alone,
        which attend to everything. ``fused, windows together``: one for all windows, which
        costs less in all and pauses everyone for longer.
        """
        loops = {"dense": self.dense(), "fused": self.fused(1)}
        if self._point.batch > 1 and self._windows:
            loops["fused, windows together"] = self.fused(self._point.batch)
        return loops

    def samples(self, executor: RtxExecutor) -> dict[str, tuple[ForwardShape, Step]]:
        """A forward of each kind at the point's own length."""
        context, everyone = self._point.context, self._all()
        steps = {
            "sparse step": self._step(Phase.SPARSE, everyone, context, 1),
            "dense decode": self._step(Phase.DENSE, everyone, context, 1),
            "window": self._step(Phase.DENSE, [0], context, self._interval),
        }
        return {name: (executor.buckets.shape_of(step), step) for name, step in steps.items()}

    def _all(self) -> list[int]:
        return list(range(self._point.batch))

    def dense(self) -> Iterator[tuple[str, Step]]:
        start = max(self._point.context - DENSE_TOKENS, 0)
        for stop in range(start + 1, self._point.context + 1):
            yield (
                "dense decode",
                self._step(Phase.DENSE, self._all(), stop, 1, late=stop > start + 1),
            )

    def fused(self, together: int) -> Iterator[tuple[str, Step]]:
        at = max(self._point.context - (WINDOWS + 1) * self._interval, 0)
        for _ in range(WINDOWS + 1):
            for turn in range(1, self._interval):
                yield "sparse step", self._step(Phase.SPARSE, self._all(), at + turn, 1, turn > 1)
            at += self._interval
            if not self._windows:
                yield "sparse step", self._step(Phase.SPARSE, self._all(), at, 1, True)
                continue
            members = self._all()
            for first in range(0, len(members), together):
                chosen = members[first : first + together]
                yield "window", self._step(Phase.DENSE, chosen, at, self._interval)

    def prefill(self, chunk: int) -> Iterator[Step]:
        """The first sequence's prompt, in chunks."""
        for start in range(0, self._point.context, chunk):
            stop = min(start + chunk, self._point.context)
            yield self._step(Phase.DENSE, [0], stop, stop - start)

    def _step(
        self, phase: Phase, members: list[int], stop: int, rows: int, late: bool = False
    ) -> Step:
        """Rows [stop - rows, stop) of each; ``late``: the tokens that the forward before chose."""
        count = len(members)
        ids = -1 - np.arange(count) if late else np.arange(count * rows) % 97
        bounds = np.arange(count + 1) * rows
        return Step(
            phase=phase,
            input_ids=ids.astype(np.int32),
            position_ids=np.tile(np.arange(stop - rows, stop, dtype=np.int32), count),
            cu_query_lens=bounds.astype(np.int32),
            kv_lens=np.full(count, stop, dtype=np.int32),
            block_table=self._tables[members, : num_blocks(stop, self._size)],
            logit_rows=(bounds[1:] - 1).astype(np.int32),
        )


def _fill(executor: RtxExecutor) -> None:
    """Normal noise in K and V, and the summaries of those keys."""
    at_once = 1 << 16
    for kv, summary in zip(executor.cache.kv, executor.cache.summary, strict=True):
        for start in range(0, len(kv), at_once):
            blocks = kv[start : start + at_once].normal_()
            summary[start : start + at_once, :, 0] = blocks[:, 0].amin(2)
            summary[start : start + at_once, :, 1] = blocks[:, 0].amax(2)
