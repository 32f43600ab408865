"""Many sequences, one executor: decide, bind, launch, then read a forward behind and commit."""

from __future__ import annotations

import dataclasses
import time
from collections import deque

from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.contract import Phase, max_logit_rows
from trt_resa.runtime.executors.base import Executor, Limits
from trt_resa.runtime.kv_cache import BlockPool
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.schedule import Forward, ForwardLimits
from trt_resa.runtime.scheduler import Place, Scheduler
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.under_way import UnderWay


class Session:
    """Runs sequences to their end, as many at once as fit; see ``scheduler`` for the order."""

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        sparse: SparseAttentionConfig,
        kv_cache: KvCacheConfig,
        scheduling: SchedulerConfig,
    ) -> None:
        self._executor = executor
        self._block_size = sparse.block_size
        #: The largest rectify_interval that a sequence may have.
        self.max_interval = max_logit_rows(limits.max_batch_size, sparse.rectify_interval)
        self._pool = BlockPool(
            executor.num_blocks, sparse.block_size, reuse=kv_cache.enable_block_reuse
        )
        rows = min(scheduling.dense_rows_while_decoding, limits.max_num_tokens)
        self._scheduler: Scheduler[Sequence] = Scheduler(
            self._pool,
            limits.max_batch_size,
            ForwardLimits(
                num_tokens=limits.max_num_tokens,
                logit_rows=limits.max_logit_rows,
                rectify_rows=self.max_interval,
                mixed_rows=max(rows, self.max_interval),
                attention_context=executor.model.attention_context,
            ),
        )
        self._counted = Metrics(kv_blocks_total=self._pool.size)
        #: Forwards whose results are not read yet: two within a step, at most one between steps.
        self._under_way: deque[UnderWay] = deque()
        self._finished_at = 0.0

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    @property
    def pool_size(self) -> int:
        """Blocks of the pool."""
        return self._pool.size

    @property
    def free_blocks(self) -> int:
        """Blocks that no running sequence holds."""
        return self._pool.available

    def metrics(self) -> Metrics:
        active = {sequence.request_id for sequence in self._scheduler.running}
        queued = {sequence.request_id for sequence in self._scheduler.waiting} - active
        return dataclasses.replace(
            self._counted,
            requests_active=len(active),
            requests_queued=len(queued),
            kv_blocks_used=self._pool.size - self._pool.available,
            kv_blocks_reused=self._scheduler.blocks_reused,
            preemptions=self._scheduler.preemptions,
        )

    def blocks_for(self, num_tokens: int) -> int:
        return num_blocks(num_tokens, self._block_size)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that the pool can hold it at its longest."""
        self._scheduler.submit(sequence)

    def end(self, request_id: int, reason: str) -> None:
        """End the request's sequences now, for ``reason``, and free their blocks.

        A forward under way may still write to these; whoever gets them writes to them after it.
        """
        for sequence in (*self._scheduler.waiting, *self._scheduler.running):
            if sequence.request_id == request_id and not sequence.finished:
                sequence.finish(reason)
        self._scheduler.drop_finished()
        self._drop_useless()

    def forget_blocks(self) -> None:
        """Reuse nothing of what is cached now; call only while idle."""
        self._pool.forget()

    def step(self) -> list[Sequence]:
        """Finish one forward; the sequences that took part. Call only while not idle.

        The next one is submitted before this one's results are read, unless it depends on them.
        """
        if not self._under_way:
            self._launch()
        current = self._under_way[0]
        if current.foreseen:
            self._launch(ahead=True)
        results = list(current.results())
        self._under_way.popleft()
        before = _progress(current.forward)
        moved = [r for r in results if r.sequence.commit(r.turn, r.tokens, r.logits)]
        after = _progress(current.forward)
        self._scheduler.done(current.forward)
        self._drop_useless()
        prompts = [r.sequence for r in moved if r.turn.action.ends_prompt]
        self._counted = self._counted.plus(
            prompt_tokens=sum(sequence.window.prompt_length for sequence in prompts),
            **{name: after[name] - before[name] for name in after},
        )
        now = time.perf_counter()
        seconds, self._finished_at = now - max(current.started_at, self._finished_at), now
        if current.forward.phase is Phase.SPARSE:
            self._counted = self._counted.plus(sparse_steps=1, step_seconds_sparse=seconds)
        else:
            self._counted = self._counted.plus(dense_passes=1, step_seconds_dense=seconds)
        return [r.sequence for r in moved]

    def _launch(self, ahead: bool = False) -> None:
        """Submit the next forward; ``ahead`` of the results of another, where there can be one."""
        forward = self._scheduler.next(ahead)
        if forward is not None:
            self._under_way.append(UnderWay(self._executor, forward, self._block_size))

    def _drop_useless(self) -> None:
        """From the last on, since a forward's tokens may come from the one before."""
        while self._under_way and self._under_way[-1].drop_useless():
            self._under_way.pop()


def _progress(forward: Forward[Place[Sequence]]) -> dict[str, float]:
    """What the sequences of ``forward`` have come to, by the names of Metrics."""
    outputs = [place.sequence.output for place, _ in forward.actions]
    return {
        "generated_tokens": sum(len(output.token_ids) for output in outputs),
        "blocks_attended": sum(output.stats.blocks_attended for output in outputs),
        "drafts_proposed": sum(output.stats.drafts for output in outputs),
        "drafts_accepted": sum(output.stats.drafts_accepted for output in outputs),
        "verifications": sum(output.stats.verifications for output in outputs),
        "drift_rows": sum(output.stats.drift_rows for output in outputs),
        "drift_agreed": sum(output.stats.drift_agreed for output in outputs),
        "drift_kl": sum(output.stats.drift_kl for output in outputs),
    }
