"""Who owns which block of the pool. Block contents live with the executor."""

from __future__ import annotations

import numpy as np

from trt_resa.blocks import num_blocks
from trt_resa.contract import Int32Array


class BlockPool:
    """Free blocks of the cache, handed out lowest first."""

    def __init__(self, size: int, block_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self._free = list(range(size - 1, -1, -1))

    @property
    def available(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """``count`` blocks; the caller has made sure that there are as many."""
        if count > self.available:
            raise RuntimeError(f"{count} blocks wanted, {self.available} free: admission is wrong")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))


class SequenceCache:
    """The blocks of one sequence, in order.

    ``reserve`` blocks are set aside at admission, so growing can never fail half-way.
    """

    def __init__(self, pool: BlockPool, max_tokens: int) -> None:
        self._pool = pool
        self._reserved = pool.take(num_blocks(max_tokens, pool.block_size))
        self.blocks: list[int] = []

    def resize(self, num_tokens: int) -> None:
        """Hold exactly the blocks of the first ``num_tokens`` tokens."""
        wanted = num_blocks(num_tokens, self._pool.block_size)
        while len(self.blocks) < wanted:
            self.blocks.append(self._reserved.pop())
        while len(self.blocks) > wanted:
            self._reserved.append(self.blocks.pop())

    def release(self) -> None:
        self._pool.give_back(self.blocks + self._reserved)
        self.blocks, self._reserved = [], []


def block_table(tables: list[list[int]]) -> Int32Array:
    """int32 [B, M] with -1 where a sequence has fewer than M blocks."""
    table = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int32)
    for row, blocks in enumerate(tables):
        table[row, : len(blocks)] = blocks
    return table
