"""Drives an executor without the session: one sequence in its own blocks."""

from __future__ import annotations

import numpy as np
import torch

from trt_resa.blocks import num_blocks
from trt_resa.contract import Phase, Step
from trt_resa.runtime.executors.base import Executor


class OneSequence:
    """A sequence whose pool blocks are scattered, so that block indices and pool blocks differ."""

    def __init__(self, executor: Executor, block_size: int, max_tokens: int) -> None:
        self._executor = executor
        self._block_size = block_size
        count = num_blocks(max_tokens, block_size)
        order = np.random.default_rng(0).permutation(executor.num_blocks)
        self.blocks = order[:count].astype(np.int32)

    def dense(self, tokens: list[int], start: int, stop: int) -> torch.Tensor:
        """Dense pass over [start, stop); logits of all its rows."""
        return self._forward(Phase.DENSE, tokens, start, stop)

    def sparse(self, tokens: list[int], position: int) -> torch.Tensor:
        """Sparse step on one position; its logits [vocab]."""
        return self._forward(Phase.SPARSE, tokens, position, position + 1)[0]

    def _forward(self, phase: Phase, tokens: list[int], start: int, stop: int) -> torch.Tensor:
        rows = np.arange(stop - start, dtype=np.int32)
        used = num_blocks(stop, self._block_size)
        step = Step(
            phase=phase,
            input_ids=np.array(tokens[start:stop], dtype=np.int32),
            position_ids=rows + np.int32(start),
            cu_query_lens=np.array([0, len(rows)], dtype=np.int32),
            kv_lens=np.array([stop], dtype=np.int32),
            block_table=self.blocks[None, :used],
            logit_rows=rows,
        )
        return self._executor.forward(step)
