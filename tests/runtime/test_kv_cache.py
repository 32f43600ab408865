from __future__ import annotations

import pytest

from trt_resa.runtime.kv_cache import BlockPool, SequenceCache, block_table


def test_a_sequence_grows_shrinks_and_gives_everything_back() -> None:
    pool = BlockPool(8, 16)
    cache = SequenceCache(pool, 100)
    assert pool.available == 1
    cache.resize(1)
    assert len(cache.blocks) == 1
    cache.resize(17)
    kept = list(cache.blocks)
    cache.resize(100)
    cache.resize(32)
    assert cache.blocks == kept
    cache.release()
    assert pool.available == 8


def test_no_block_is_handed_out_twice() -> None:
    pool = BlockPool(6, 16)
    first, second = SequenceCache(pool, 48), SequenceCache(pool, 48)
    first.resize(48)
    second.resize(48)
    assert not set(first.blocks) & set(second.blocks)
    with pytest.raises(RuntimeError, match="1 blocks wanted, 0 free"):
        SequenceCache(pool, 1)


def test_block_table_is_padded() -> None:
    assert block_table([[3], [1, 2]]).tolist() == [[3, -1], [1, 2]]
