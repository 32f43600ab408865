"""Many sequences, one executor: decide, bind, launch, sample, commit."""

from __future__ import annotations

import dataclasses
import time
from collections import deque

import numpy as np

from trt_resa.blocks import num_blocks
from trt_resa.contract import Phase, Step, max_logit_rows
from trt_resa.runtime.executors.base import Executor, Limits
from trt_resa.runtime.kv_cache import BlockPool, SequenceCache, block_table
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.schedule import Forward, ForwardLimits, next_forward
from trt_resa.runtime.sequence import Sequence


class Session:
    """Runs sequences to their end, in order of arrival, as many at once as fit.

    A sequence is admitted when the pool can hold it at its longest, so it never runs out of blocks.
    """

    def __init__(
        self, executor: Executor, limits: Limits, block_size: int, rectify_interval: int
    ) -> None:
        self._executor = executor
        self._limits = limits
        self._pool = BlockPool(executor.num_blocks, block_size)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._previous = Phase.SPARSE
        self._counted = Metrics(kv_blocks_total=executor.num_blocks)
        self._forward_limits = ForwardLimits(
            num_tokens=limits.max_num_tokens,
            logit_rows=limits.max_logit_rows,
            rectify_rows=max_logit_rows(limits.max_batch_size, rectify_interval),
        )

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def pool_size(self) -> int:
        """Blocks of the pool."""
        return self._pool.size

    @property
    def free_blocks(self) -> int:
        return self._pool.available

    def metrics(self) -> Metrics:
        active = {sequence.request_id for sequence in self._running}
        queued = {sequence.request_id for sequence in self._waiting} - active
        return dataclasses.replace(
            self._counted,
            requests_active=len(active),
            requests_queued=len(queued),
            kv_blocks_used=self._pool.size - self._pool.available,
        )

    def blocks_for(self, num_tokens: int) -> int:
        return num_blocks(num_tokens, self._pool.block_size)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that the pool can ever hold it."""
        self._waiting.append(sequence)

    def cancel(self, request_id: int) -> None:
        """End the request's sequences now and free their blocks."""
        for sequence in [*self._waiting, *self._running]:
            if sequence.request_id == request_id and not sequence.finished:
                sequence.finish("cancelled")
        self._waiting = deque(s for s in self._waiting if not s.finished)
        self._retire()

    def step(self) -> list[Sequence]:
        """One forward; the sequences that took part. Call only while not idle."""
        start = time.perf_counter()
        self._admit()
        wanted = [(sequence, sequence.next_action()) for sequence in self._running]
        forward = next_forward(wanted, self._forward_limits, self._previous)
        logits = self._executor.forward(self._pack(forward))
        self._previous = forward.phase
        row = 0
        before = self._progress(forward)
        for sequence, action in forward.actions:
            sequence.commit(action, logits[row : row + action.num_logits])
            row += action.num_logits
        after = self._progress(forward)
        self._counted = self._counted.plus(**{name: after[name] - before[name] for name in after})
        self._count_forward(forward.phase, time.perf_counter() - start)
        self._retire()
        return [sequence for sequence, _ in forward.actions]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._limits.max_batch_size:
            sequence = self._waiting[0]
            if self.blocks_for(sequence.max_tokens) > self._pool.available:
                return
            sequence.cache = SequenceCache(self._pool, sequence.max_tokens)
            self._running.append(self._waiting.popleft())
            self._counted = self._counted.plus(prompt_tokens=sequence.prompt_length)

    def _count_forward(self, phase: Phase, seconds: float) -> None:
        if phase is Phase.SPARSE:
            self._counted = self._counted.plus(sparse_steps=1, step_seconds_sparse=seconds)
        else:
            self._counted = self._counted.plus(dense_passes=1, step_seconds_dense=seconds)

    @staticmethod
    def _progress(forward: Forward[Sequence]) -> dict[str, int]:
        """What the sequences of ``forward`` have come to, by the names of Metrics."""
        outputs = [sequence.output for sequence, _ in forward.actions]
        return {
            "generated_tokens": sum(len(output.token_ids) for output in outputs),
            "blocks_attended": sum(output.stats.blocks_attended for output in outputs),
            "drafts_proposed": sum(output.stats.drafts for output in outputs),
            "drafts_accepted": sum(output.stats.drafts_accepted for output in outputs),
        }

    def _retire(self) -> None:
        for sequence in self._running:
            if sequence.finished and sequence.cache is not None:
                sequence.cache.release()
        self._running = [sequence for sequence in self._running if not sequence.finished]

    def _pack(self, forward: Forward[Sequence]) -> Step:
        ids: list[int] = []
        positions: list[int] = []
        tables: list[list[int]] = []
        bounds, kv_lens, logit_rows = [0], list[int](), list[int]()
        for sequence, action in forward.actions:
            assert sequence.cache is not None
            sequence.cache.resize(action.stop)
            ids += sequence.inputs(action)
            positions += range(action.start, action.stop)
            bounds.append(len(ids))
            kv_lens.append(action.stop)
            tables.append(sequence.cache.blocks)
            logit_rows += range(len(ids) - action.num_logits, len(ids))
        return Step(
            phase=forward.phase,
            input_ids=np.array(ids, dtype=np.int32),
            position_ids=np.array(positions, dtype=np.int32),
            cu_query_lens=np.array(bounds, dtype=np.int32),
            kv_lens=np.array(kv_lens, dtype=np.int32),
            block_table=block_table(tables),
            logit_rows=np.array(logit_rows, dtype=np.int32),
        )
