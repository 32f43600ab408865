from __future__ import annotations

import numpy as np
import pytest

from trt_resa.runtime.kv_cache import BlockPool, SequenceCache
from trt_resa.runtime.packing import block_table
from trt_resa.runtime.prefix_cache import BlockKeys


def keys(tokens: list[int], size: int = 4) -> list[bytes]:
    chain = BlockKeys(size)
    return [chain.key(index, tokens) for index in range(len(tokens) // size)]


def cached(pool: BlockPool, tokens: list[int], shared: tuple[int, ...] = ()) -> SequenceCache:
    """A sequence whose tokens are all dense-exact."""
    cache = SequenceCache(pool, shared)
    cache.grow(len(tokens))
    for index in cache.unoffered(len(tokens)):
        cache.offer(index, keys(tokens)[index])
    return cache


def test_a_sequence_grows_shrinks_and_gives_everything_back() -> None:
    pool = BlockPool(8, 16)
    cache = SequenceCache(pool)
    cache.grow(1)
    assert len(cache.blocks) == 1
    assert cache.missing(17) == 1
    cache.grow(17)
    kept = cache.blocks[:]
    cache.grow(100)
    assert pool.available == 1
    cache.shrink(32)
    assert cache.blocks == kept
    cache.grow(5)
    assert cache.blocks == kept
    cache.release()
    assert pool.available == 8


def test_no_block_is_handed_out_twice() -> None:
    pool = BlockPool(6, 16)
    first, second = SequenceCache(pool), SequenceCache(pool)
    first.grow(48)
    second.grow(48)
    assert not set(first.blocks) & set(second.blocks)
    with pytest.raises(RuntimeError, match="1 blocks wanted, 0 free"):
        SequenceCache(pool).grow(1)


def test_keys_tell_prefixes_apart() -> None:
    tokens = list(range(12))
    assert keys(tokens)[:2] == keys(tokens[:8])
    assert keys([*tokens[:4], 99, *tokens[5:]])[0] == keys(tokens)[0]
    assert keys([*tokens[:4], 99, *tokens[5:]])[1:] != keys(tokens)[1:]
    # The same tokens behind others are another prefix.
    assert keys(tokens[:4] * 2)[0] != keys(tokens[:4] * 2)[1]


def test_a_finished_prefix_is_shared_and_survives_each_of_its_users() -> None:
    pool = BlockPool(8, 4, reuse=True)
    tokens = list(range(10))
    first = cached(pool, tokens)
    assert pool.find(keys(tokens)) == list(first.blocks[:2])
    assert pool.find(keys([*tokens[:4], 99, *tokens[5:]])) == list(first.blocks[:1])
    second = cached(pool, tokens, tuple(first.blocks[:2]))
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert [pool.users(block) for block in first.blocks] == [2, 2, 1]
    assert pool.available == 4
    first.release()
    assert pool.available == 5
    second.release()
    assert pool.available == 8
    assert pool.count_unused(pool.find(keys(tokens))) == 2


def test_the_least_recently_used_block_is_evicted_and_ends_of_prefixes_before_starts() -> None:
    pool = BlockPool(5, 4, reuse=True)
    old, new = list(range(8)), list(range(50, 58))
    cached(pool, old).release()
    cached(pool, new).release()
    # Someone uses the old prefix again.
    cached(pool, old, tuple(pool.find(keys(old)))).release()
    taken = SequenceCache(pool)
    taken.grow(8)  # the free block, then the end of the new prefix
    assert len(pool.find(keys(old))) == 2
    assert len(pool.find(keys(new))) == 1
    taken.grow(16)
    assert len(pool.find(keys(old))) == 1
    assert pool.find(keys(new)) == []
    assert pool.available == 1


def test_without_reuse_nothing_is_kept() -> None:
    pool = BlockPool(4, 4)
    cached(pool, list(range(8))).release()
    assert pool.find(keys(list(range(8)))) == []


def test_two_that_compute_the_same_prefix_keep_a_block_each() -> None:
    pool = BlockPool(4, 4, reuse=True)
    first, second = cached(pool, list(range(8))), cached(pool, list(range(8)))
    assert pool.find(keys(list(range(8)))) == list(first.blocks)
    second.release()
    assert pool.count_unused(pool.find(keys(list(range(8))))) == 0
    assert pool.available == 2
    first.release()
    assert pool.available == 4
    pool.forget()
    assert pool.find(keys(list(range(8)))) == []
    assert pool.available == 4


def test_block_table_is_padded() -> None:
    tables = [np.array([3], dtype=np.int32), np.array([1, 2], dtype=np.int32)]
    assert block_table(tables).tolist() == [[3, -1], [1, 2]]
