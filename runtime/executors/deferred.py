"""``submit`` for executors that compute on the host: a forward runs when its results are read.

So the host can plan a forward ahead as it does for a GPU, without anyone waiting for a forward that
has not been asked for yet.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trt_resa.contract import Int32Array, Step

T = TypeVar("T")


class ForwardQueue:
    """Forwards in the order of their submission; ``compute`` returns float32 logits [R, vocab]."""

    def __init__(self, compute: Callable[[Step], torch.Tensor]) -> None:
        self._compute = compute
        self._waiting: deque[Deferred] = deque()
        self._ran: Deferred | None = None
        self.newest: Deferred | None = None

    def submit(self, step: Step) -> Deferred:
        self.newest = Deferred(self, step)
        self._waiting.append(self.newest)
        return self.newest

    def run(self, forward: Deferred) -> None:
        """Run ``forward``, unless it has run, and before it those submitted before it."""
        while forward in self._waiting:
            first = self._waiting.popleft()
            first.result = self._logits(self._with_tokens(first.step), first.dropped)
            self._ran = first

    def drop(self, forward: Deferred) -> None:
        """``forward`` does not run, unless it has."""
        if forward in self._waiting:
            self._waiting.remove(forward)

    def _logits(self, step: Step, dropped: Collection[int]) -> torch.Tensor:
        """Those of all logit rows of ``step``; zeros for the sequences that were dropped."""
        if not dropped:
            return self._compute(step)
        part, rows = _without(step, dropped)
        computed = self._compute(part)
        logits = computed.new_zeros((len(step.logit_rows), computed.shape[1]))
        logits[torch.from_numpy(rows)] = computed
        return logits

    def _with_tokens(self, step: Step) -> Step:
        """``step`` with the tokens that its negative ids stand for."""
        late = step.input_ids < 0
        if not late.any():
            return step
        assert self._ran is not None
        ids = np.array(step.input_ids)
        ids[late] = self._ran.likeliest[-1 - ids[late]]
        return dataclasses.replace(step, input_ids=ids)


class Deferred:
    """A forward that runs when one of its results is read, or one of a later forward."""

    def __init__(self, queue: ForwardQueue, step: Step) -> None:
        self._queue, self.step = queue, step
        self.dropped: set[int] = set()
        self.result: torch.Tensor | None = None

    def tokens(self) -> Later[Int32Array]:
        self._check()
        return Later(lambda: self.likeliest)

    def logits(self, rows: Sequence[int] | None = None) -> Later[torch.Tensor]:
        self._check()
        return Later(lambda: self._logits if rows is None else self._logits[list(rows)])

    def drop(self, sequences: Collection[int]) -> None:
        self.dropped |= set(sequences)
        if len(self.dropped) == self.step.batch_size:
            self._queue.drop(self)

    @cached_property
    def likeliest(self) -> Int32Array:
        return self._logits.argmax(-1).to(torch.int32).numpy()

    @property
    def _logits(self) -> torch.Tensor:
        self._queue.run(self)
        if self.result is None:
            raise RuntimeError("a forward that failed or was dropped has no results")
        return self.result

    def _check(self) -> None:
        if self._queue.newest is not self:
            raise RuntimeError("results of a forward are asked for before the next one only")


def _without(step: Step, sequences: Collection[int]) -> tuple[Step, npt.NDArray[np.bool_]]:
    """``step`` without these of its sequences, and which of its logit rows are left [R]."""
    kept = np.ones(step.batch_size, dtype=np.bool_)
    kept[list(sequences)] = False
    counts = np.diff(step.cu_query_lens)
    rows = np.repeat(kept, counts)
    moved_to = np.cumsum(rows, dtype=np.int32) - 1
    wanted = rows[step.logit_rows]
    part = dataclasses.replace(
        step,
        input_ids=step.input_ids[rows],
        position_ids=step.position_ids[rows],
        cu_query_lens=np.concatenate(([0], np.cumsum(counts[kept]))).astype(np.int32),
        kv_lens=step.kv_lens[kept],
        block_table=step.block_table[kept],
        logit_rows=moved_to[step.logit_rows[wanted]],
    )
    return part, wanted


@dataclass(frozen=True)
class Later(Generic[T]):
    """A result that is computed when it is read."""

    get: Callable[[], T]
