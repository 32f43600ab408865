"""Who holds which block of the pool. Block contents live with the executor."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from trt_resa.blocks import num_blocks
from trt_resa.runtime.prefix_cache import PrefixCache


class BlockPool:
    """The blocks of the cache, free ones handed out lowest first.

    With ``reuse``, finished blocks keep their contents after their last user for as long as nobody
    needs the room, and count as available. A block that several sequences hold is one of these.
    """

    def __init__(self, size: int, block_size: int, reuse: bool = False) -> None:
        self.size = size
        self.block_size = block_size
        self._free = list(range(size - 1, -1, -1))
        self._users = [0] * size
        self._reuse = reuse
        self._prefixes = PrefixCache()

    @property
    def available(self) -> int:
        return len(self._free) + self._prefixes.num_unused

    def take(self, count: int) -> list[int]:
        """``count`` blocks; the caller has made sure that there are as many."""
        if count > self.available:
            raise RuntimeError(f"{count} blocks wanted, {self.available} free: admission is wrong")
        blocks = [self._free.pop() if self._free else self._prefixes.evict() for _ in range(count)]
        for block in blocks:
            self._users[block] = 1
        return blocks

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user less for each of ``blocks``, given in their order in the sequence.

        The last ones become available, and are evicted, first: a prefix is found from its start.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._prefixes:
                    self._prefixes.set_unused(block)
                else:
                    self._free.append(block)

    def share(self, blocks: Iterable[int]) -> None:
        """One user more for each of these blocks, which ``find`` returned."""
        for block in blocks:
            self._users[block] += 1
            self._prefixes.use(block)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix; ``keys`` are those of consecutive blocks."""
        found: list[int] = []
        for key in keys if self._reuse else ():
            block = self._prefixes.find(key)
            if block is None:
                break
            found.append(block)
        return found

    def count_unused(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` are available now."""
        return sum(self._prefixes.is_unused(block) for block in blocks)

    def users(self, block: int) -> int:
        return self._users[block]

    def offer(self, block: int, key: bytes) -> None:
        """A block in use is full and dense-exact: from now on nobody writes to it."""
        if self._reuse:
            self._prefixes.add(block, key)

    def forget(self) -> None:
        """Drop what was kept for reuse; no block is in use."""
        while self._prefixes.num_unused:
            self._free.append(self._prefixes.evict())


class SequenceCache:
    """The blocks of one sequence, in order; the first ``shared`` ones come from another.

    They are an array of C integers, since every forward copies them into its block table.
    """

    def __init__(self, pool: BlockPool, shared: Sequence[int] = ()) -> None:
        self._pool = pool
        pool.share(shared)
        self.blocks = array("i", shared)
        self._offered = len(shared)

    def missing(self, num_tokens: int) -> int:
        """Blocks to take before the cache can hold ``num_tokens`` tokens."""
        return max(0, num_blocks(num_tokens, self._pool.block_size) - len(self.blocks))

    def grow(self, num_tokens: int) -> None:
        """Hold at least the blocks of the first ``num_tokens`` tokens."""
        self.blocks.extend(self._pool.take(self.missing(num_tokens)))

    def shrink(self, num_tokens: int) -> None:
        """Hold at most the blocks of the first ``num_tokens`` tokens."""
        kept = num_blocks(num_tokens, self._pool.block_size)
        if kept < len(self.blocks):
            self._pool.give_back(self.blocks[kept:])
            del self.blocks[kept:]

    def unoffered(self, exact: int) -> range:
        """Indices of the full blocks among the first ``exact`` tokens that were not offered yet."""
        return range(self._offered, exact // self._pool.block_size)

    def offer(self, index: int, key: bytes) -> None:
        """Block ``index`` is full and dense-exact, and others may share it."""
        self._pool.offer(self.blocks[index], key)
        self._offered = index + 1

    def release(self) -> None:
        self._pool.give_back(self.blocks)
        del self.blocks[:]
