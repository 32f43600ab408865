"""The reference against definitions written out: loops, double precision, sorted lists."""

from __future__ import annotations

import math

import pytest
import torch

from trt_resa.config import SparseAttentionConfig
from trt_resa.reference.attention import dense_attention, sparse_attention
from trt_resa.reference.compare import assert_close, relative_error
from trt_resa.reference.paged_cache import append, plan_append
from trt_resa.reference.selection import all_blocks, select

BLOCK, DIM = 16, 64


class Cache:
    """Sequences of random keys and values in scattered blocks; everything else is NaN."""

    def __init__(self, lengths: list[int], kv_heads: int, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.lengths, self.kv_heads = lengths, kv_heads
        blocks = [-(-length // BLOCK) for length in lengths]
        pool = torch.randperm(sum(blocks) + 3, generator=self.random)
        self.kv = torch.full((len(pool), 2, kv_heads, BLOCK, DIM), torch.nan)
        self.summary = torch.full((len(pool), kv_heads, 2, DIM), torch.nan)
        self.table = torch.full((len(lengths), max(blocks)), -1)
        self.keys, self.values = [], []
        start = 0
        for row, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
            self.table[row, :count] = pool[start : start + count]
            start += count
            self.keys.append(self.normal(length, kv_heads, DIM))
            self.values.append(self.normal(length, kv_heads, DIM))
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        plan = plan_append(bounds, torch.tensor(lengths), self.table, BLOCK)
        append(self.kv, self.summary, torch.cat(self.keys), torch.cat(self.values), plan)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def expected(self, row: int, head: int, q: torch.Tensor, places: list[int]) -> torch.Tensor:
        """softmax(q k / sqrt(d)) v over ``places`` in double precision."""
        keys = self.keys[row][places, head].double()
        values = self.values[row][places, head].double()
        weights = torch.softmax(keys @ q.double() / math.sqrt(DIM), 0)
        return weights @ values


@pytest.mark.parametrize("group", [1, 3, 7])
def test_dense_attention(group: int) -> None:
    for length, rows in ((1, 1), (16, 16), (17, 2), (50, 33), (64, 1)):
        cache = Cache([length], 2)
        q = cache.normal(rows, 2 * group, DIM)
        out = dense_attention(q, cache.kv, length, cache.table[0])
        for row in range(rows):
            seen = list(range(length - rows + row + 1))
            for head in range(2 * group):
                expected = cache.expected(0, head // group, q[row, head], seen)
                assert relative_error(out[row, head], expected) < 1e-5


def test_sparse_attention_reads_the_selection_alone() -> None:
    cache = Cache([100, 33], 2)
    q = cache.normal(2, 6, DIM)
    chosen = torch.tensor([[[0, 2, 6], [1, 3, 5]], [[2, -1, -1], [0, 1, -1]]])
    out = sparse_attention(q, cache.kv, chosen, torch.tensor(cache.lengths), cache.table)
    for row in range(2):
        for head in range(6):
            blocks = [b for b in chosen[row, head // 3].tolist() if b >= 0]
            places = [p for b in blocks for p in range(b * BLOCK, (b + 1) * BLOCK)]
            places = [p for p in places if p < cache.lengths[row]]
            expected = cache.expected(row, head // 3, q[row, head], places)
            assert relative_error(out[row, head], expected) < 1e-5


def test_a_selection_of_every_block_gives_the_bits_of_the_dense_pass() -> None:
    for length in (1, 16, 47, 200):
        cache = Cache([length], 2)
        q = cache.normal(1, 6, DIM)
        every = all_blocks([-(-length // BLOCK)], 2, q.device)
        sparse = sparse_attention(q, cache.kv, every, torch.tensor([length]), cache.table)
        assert torch.equal(sparse, dense_attention(q, cache.kv, length, cache.table[0]))


@pytest.mark.parametrize(("sinks", "local"), [(0, 1), (2, 3)])
def test_selection_by_sorting(sinks: int, local: int) -> None:
    config = SparseAttentionConfig(
        keep_ratio=0.3, min_blocks=5, sink_blocks=sinks, local_blocks=local, dense_below=0
    )
    lengths = [5, 80, 81, 333, 600]
    cache = Cache(lengths, 2, seed=sinks)
    # Keys and queries of small integers: equal blocks have equal scores, and many tie.
    for buffer in (cache.kv, cache.summary):
        buffer.copy_(buffer.nan_to_num(0).round().clamp(-1, 1))
    q = cache.normal(5, 4, DIM).round().clamp(-1, 1)
    chosen = select(q, cache.summary, lengths, cache.table, config)
    ties = 0
    for row, length in enumerate(lengths):
        count = -(-length // BLOCK)
        wanted = max(math.ceil(0.3 * count), min(count, 5))
        for head in range(2):
            queries = q[row, 2 * head : 2 * head + 2]
            forced = {i for i in range(count) if i < sinks or i >= count - local}
            scores = [0.0] * count
            for query in queries.double():
                weights = []
                for block in cache.table[row, :count].tolist():
                    low, high = cache.summary[block, head].double()
                    largest = query @ (low + high) / 2 + (query * (high - low) / 2).norm()
                    weights.append(math.exp(largest / math.sqrt(DIM)))
                whole = sum(weight for i, weight in enumerate(weights) if i not in forced)
                if whole:
                    scores = [a + w / whole for a, w in zip(scores, weights, strict=True)]
            scores = [round(score, 12) for score in scores]
            order = sorted(range(count), key=lambda i: (i not in forced, -scores[i], i))
            expected = sorted(order[:wanted])
            got = [b for b in chosen[row, head].tolist() if b >= 0]
            assert got == expected
            ties += len(scores) - len(set(scores))
    assert ties > 10


def test_the_comparator_names_the_worst_element_and_refuses_nan() -> None:
    expected = torch.zeros(2, 3)
    with pytest.raises(AssertionError, match=r"worst element \(1, 2\): got 5\.0, expected 0\.0; 1"):
        assert_close(torch.eye(3)[:2] * 0 + torch.tensor([[0, 0, 0], [0, 0, 5.0]]), expected,
                     atol=1e-3, rtol=0, what="x")  # fmt: skip
    nan = torch.tensor([[0, torch.nan, 0], [0, 0, 0]])
    with pytest.raises(AssertionError, match=r"worst element \(0, 1\)"):
        assert_close(nan, expected, atol=1e9, rtol=0, what="x")
    assert relative_error(nan, nan) == float("inf")
    assert_close(expected, expected, atol=0, rtol=0, what="x")
