"""An executor of integers on the host: as exact as a model is not, and suspicious.

A position's "K/V" is a number mixed from its token, its place and the numbers that it attends to,
so what a pass writes depends on everything before it and on whether it was sparse or dense. The
same numbers make the logits. Every forward checks what it is asked to do.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.builder.networks import tiny_model
from trt_resa.blocks import attended_blocks, num_blocks
from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import Phase, Step
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.deferred import ForwardQueue

VOCAB = 16
_MASK = (1 << 31) - 1
_SPREAD = np.arange(1, VOCAB + 1) * 7919


def mix(*numbers: int) -> int:
    state = 17
    for number in numbers:
        state = (state * 1103515245 + number * 2654435761 + 12345) & ((1 << 62) - 1)
        state ^= state >> 29
    return state & _MASK


class FakeExecutor:
    """Logits depend on the cache for one token in four, so that most drafts are accepted."""

    #: Attending to 25 tokens costs as much as its linears.
    model = tiny_model(hidden_size=16, intermediate_size=16)

    def __init__(self, pool: int, sparse: SparseAttentionConfig, limits: Limits) -> None:
        self.num_blocks = pool
        self.sparse, self.limits = sparse, limits
        shape = (pool, sparse.block_size)
        self.values = np.zeros(shape, dtype=np.int64)
        self.positions = np.full(shape, -1, dtype=np.int64)
        #: Written over a dense-exact prefix by a dense pass or a step that attends to everything.
        self.exact = np.zeros(shape, dtype=bool)
        self.forwards = self.rows = 0
        self.submit = ForwardQueue(self.forward).submit

    def forward(self, step: Step) -> torch.Tensor:
        self.forwards += 1
        self.rows += step.num_tokens
        self._check(step)
        results: list[int] = []
        for row, kv_len in enumerate(step.kv_lens.tolist()):
            rows = slice(step.cu_query_lens[row], step.cu_query_lens[row + 1])
            tokens = step.input_ids[rows].tolist()
            start = kv_len - len(tokens)
            assert step.position_ids[rows].tolist() == list(range(start, kv_len))
            blocks = step.block_table[row, : num_blocks(kv_len, self.sparse.block_size)]
            assert blocks.min() >= 0
            assert (step.block_table[row, len(blocks) :] == -1).all()
            results += self._sequence(step, tokens, start, blocks)
        seeds = np.array([results[row] for row in step.logit_rows], dtype=np.int64)
        return torch.from_numpy((seeds[:, None] * _SPREAD % 997 / 99).astype(np.float32))

    def _sequence(self, step: Step, tokens: list[int], start: int, blocks: np.ndarray) -> list[int]:
        places = np.arange(start + len(tokens))
        size = self.sparse.block_size
        where = (blocks[places // size], places % size)
        before = (where[0][:start], where[1][:start])
        assert (self.positions[before] == places[:start]).all(), "reads what was never written"
        if step.phase is Phase.SPARSE:
            total = self._selected(step, start, tokens[0], blocks)
        else:
            total = int(self.values[before].sum())
        written, results = [], []
        for place, token in enumerate(tokens, start):
            value = mix(token, place, total)
            written.append(value)
            total += value
            results.append(value if value % 4 == 0 else mix(token, place))
        new = (where[0][start:], where[1][start:])
        self.values[new] = written
        self.positions[new] = places[start:]
        sparse = step.sparse or self.sparse
        everything = step.phase is Phase.DENSE or start < sparse.dense_below
        self.exact[new] = everything and bool(self.exact[before].all())
        return results

    def _selected(self, step: Step, start: int, token: int, blocks: np.ndarray) -> int:
        sparse = step.sparse or self.sparse
        held = np.where(
            np.arange(len(blocks) * sparse.block_size).reshape(len(blocks), -1) < start,
            self.values[blocks],
            0,
        ).sum(axis=1)
        scores = (held * (2 * token + 1)) % 9973
        scores[-sparse.local_blocks :] = 1 << 20
        count = attended_blocks(start + 1, sparse)
        return int(held[np.argsort(-scores, kind="stable")[:count]].sum())

    def _check(self, step: Step) -> None:
        limits = self.limits
        assert 0 < step.num_tokens <= limits.max_num_tokens
        assert 0 < step.batch_size <= limits.max_batch_size
        assert len(step.logit_rows) <= limits.max_logit_rows
        if step.phase is Phase.SPARSE:
            assert step.num_tokens == step.batch_size == len(step.logit_rows)
