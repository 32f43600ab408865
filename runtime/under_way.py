"""A forward between its submission and its results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch

from trt_resa.runtime.executors.base import Executor
from trt_resa.runtime.packing import pack
from trt_resa.runtime.schedule import Forward
from trt_resa.runtime.scheduler import Place
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.turn import Turn


class Result(NamedTuple):
    """What one sequence gets; ``tokens`` and ``logits`` as ``Sequence.commit`` takes them."""

    sequence: Sequence
    turn: Turn
    tokens: SequenceOf[int]
    logits: Mapping[int, torch.Tensor]


class UnderWay:
    """Submits ``forward``, begins its turns, and sends for what the host will need of it."""

    def __init__(
        self, executor: Executor, forward: Forward[Place[Sequence]], block_size: int
    ) -> None:
        self.forward = forward
        self.started_at = time.perf_counter()
        self._submitted = executor.submit(pack(forward, block_size))
        self._turns: list[tuple[Sequence, Turn]] = []
        row = 0
        for place, action in forward.actions:
            self._turns.append((place.sequence, place.sequence.begin(action, row)))
            row += action.num_logits
        # Of a forward without logit rows too: to read them is to wait for it.
        self._tokens = self._submitted.tokens()
        rows = [turn.row + row for _, turn in self._turns for row in turn.host_rows]
        self._logits = self._submitted.logits(rows) if rows else None

    @property
    def foreseen(self) -> bool:
        """Whether the next forward can be submitted before the results are read."""
        return all(turn.foreseen for _, turn in self._turns)

    def results(self) -> Iterator[Result]:
        """Waits for the forward."""
        tokens = self._tokens.get().tolist()
        logits = iter(() if self._logits is None else self._logits.get())
        for sequence, turn in self._turns:
            own = tokens[turn.row : turn.row + turn.action.num_logits]
            yield Result(sequence, turn, own, {row: next(logits) for row in turn.host_rows})

    def drop_useless(self) -> bool:
        """Leave out the sequences with no use for the results; whether those are all."""
        turns = enumerate(self._turns)
        useless = [row for row, (sequence, turn) in turns if sequence.finished or turn.taken_back]
        if useless:
            self._submitted.drop(useless)
        return len(useless) == len(self._turns)
