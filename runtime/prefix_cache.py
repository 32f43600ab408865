"""Finished blocks by what is in them: the tokens of a sequence up to the block's end.

Only full, dense-exact blocks are in here. Their K/V is a function of those tokens alone, whatever
the settings of the request that computed it, and nobody writes to them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256


class BlockKeys:
    """Keys of a sequence's full blocks: each a digest of its tokens and of the key before it."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._keys: list[bytes] = []

    def key(self, index: int, tokens: Sequence[int]) -> bytes:
        """Key of block ``index``; ``tokens`` reach to its end and are the same at every call.

        All keys up to it are made with it.
        """
        if index < len(self._keys):
            return self._keys[index]
        made = len(self._keys) * self._block_size
        packed = array("I", tokens[made : (index + 1) * self._block_size])
        width = packed.itemsize * self._block_size
        content = packed.tobytes()
        before = self._keys[-1] if self._keys else b""
        for place in range(0, len(content), width):
            before = sha256(before + content[place : place + width]).digest()
            self._keys.append(before)
        return self._keys[index]


class PrefixCache:
    """Which block holds which prefix, and in what order unused ones are evicted."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def num_unused(self) -> int:
        """Blocks that no sequence holds; they can be evicted."""
        return len(self._unused)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    def find(self, key: bytes) -> int | None:
        return self._block_of.get(key)

    def is_unused(self, block: int) -> bool:
        return block in self._unused

    def add(self, block: int, key: bytes) -> None:
        """Offer a block in use; where another holds the same prefix already, that one stays."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def use(self, block: int) -> None:
        self._unused.pop(block, None)

    def set_unused(self, block: int) -> None:
        """The last user of ``block`` is gone; it is the last in line for eviction."""
        self._unused[block] = None

    def evict(self) -> int:
        """The block that has been unused for longest, no longer to be found here."""
        block, _ = self._unused.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
