"""block_select: exact where scores are exact in fp32, else up to rounding at the threshold."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tests.plugins.sparse_case import (  # noqa: E402 (after importorskip)
    Cache,
    Selecting,
    Selection,
    empty_selection,
    launch,
    make_cache,
    ranking,
    scores,
    select,
    select_params,
)

pytestmark = pytest.mark.gpu


def check(cache: Cache, settings: Selecting, actual: Selection, exact: bool = False) -> None:
    for seq, kv_len in enumerate(cache.kv_lens.tolist()):
        count = settings.count(kv_len, cache.block_size)
        assert int(actual.counts[seq]) == count, "count"
        rest = actual.blocks[seq, :, count:]
        assert (rest == -7).all(), "nothing is written behind the selection"
        if kv_len == 0:
            continue
        order = ranking(cache, seq, settings)
        score, error = scores(cache, seq, settings)
        for head in range(cache.kv.shape[2]):
            got = actual.of(seq, head)
            wanted = order[head, :count].sort().values
            if exact:
                assert torch.equal(got, wanted)
                continue
            assert (got.diff() > 0).all(), "ascending, none twice"
            assert got.min() >= 0
            assert got.max() < order.shape[1]
            last = order[head, count - 1]
            off = torch.cat([got[~torch.isin(got, wanted)], wanted[~torch.isin(wanted, got)]])
            assert ((score[head, off] - score[head, last]).abs() <= 2 * error[head].max()).all()
            blocks = order.shape[1]
            forced = [
                *range(min(settings.sink_blocks, blocks)),
                *range(max(blocks - settings.local_blocks, 0), blocks),
            ]
            assert torch.isin(torch.tensor(forced, device=got.device), got).all(), "forced blocks"


def run(library, cache: Cache, settings: Selecting, exact: bool = False) -> None:
    check(cache, settings, select(library, cache, settings), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_shapes(library, dtype, head_dim, block_size):
    cache = make_cache(
        [70 * block_size + 3, 0, 33 * block_size, 1],
        dtype=dtype,
        head_dim=head_dim,
        block_size=block_size,
    )
    run(library, cache, Selecting())


@pytest.mark.parametrize(
    "kv_len", [1, 15, 16, 17, 255, 256, 257, 271, 272, 273, 1023, 1024, 1025, 16384, 16385]
)
def test_block_edges(library, kv_len):
    run(library, make_cache([kv_len], seed=kv_len), Selecting())


@pytest.mark.parametrize("group", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_groups(library, group, kv_heads):
    cache = make_cache([5000, 1200], q_heads=group * kv_heads, kv_heads=kv_heads)
    run(library, cache, Selecting())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [8, 16])
def test_long_rows(library, dtype, head_dim, group):
    """More summaries than are on their way at once."""
    cache = make_cache(
        [16 * 9001, 16 * 7000], q_heads=2 * group, head_dim=head_dim, dtype=dtype, seed=group
    )
    run(library, cache, Selecting())


def test_terms_beyond_shared_memory(library):
    """A thread block of a team of 16 has 36,000 terms: they stay in the workspace."""
    cache = make_cache([16 * 36000], q_heads=32, head_dim=64)
    run(library, cache, Selecting())


@pytest.mark.parametrize("group", [1, 7, 16])
@pytest.mark.parametrize("kv_len", [60, 90, 130, 250])
def test_fewer_blocks_than_a_team(library, group, kv_len):
    """What the launch before left in a multiprocessor's shared memory counts for nothing."""
    run(library, make_cache([30000], q_heads=4 * group, kv_heads=4), Selecting())
    cache = make_cache([kv_len], q_heads=4 * group, kv_heads=4, seed=kv_len)
    run(library, cache, Selecting(min_blocks=2))


@pytest.mark.parametrize("group", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("integers", [1, 3])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.1, 0.5, 0.99])
def test_exact_scores_with_ties(library, group, integers, keep_ratio):
    """Small integers: many blocks share a score, also at the threshold, and sums are exact."""
    cache = make_cache(
        [16 * 3000 + 5, 16 * 500, 40], q_heads=group * 2, integers=integers, head_dim=64
    )
    run(library, cache, Selecting(keep_ratio=keep_ratio), exact=True)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-6, 60000.0])
def test_all_blocks_equal(library, value):
    """One key value: the first blocks and the local one."""
    cache = make_cache([16 * 5000], q_heads=2)
    cache.summary.fill_(value)
    cache.q.fill_(1.0)
    run(library, cache, Selecting(), exact=True)


@pytest.mark.parametrize("exponent", [-24, -8, -3, 0, 5, 9])
@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_of_every_size(library, exponent, sign):
    """One element per term: exact where a share of the whole shows it. All bins are in use."""
    cache = make_cache([16 * 9000], q_heads=2, head_dim=64)
    cache.q.zero_()
    cache.q[..., 5] = sign
    generator = torch.Generator("cuda").manual_seed(exponent)
    steps = torch.randint(1, 2048, cache.summary.shape[:2], generator=generator, device="cuda")
    cache.summary[..., 5] = (steps * 2.0 ** (exponent - 10)).half()[..., None]
    for ratio in (0.1, 0.5):
        run(library, cache, Selecting(keep_ratio=ratio), exact=exponent >= -3)


def test_mixed_signs(library):
    cache = make_cache([16 * 9000], q_heads=2, integers=2)
    for ratio in (0.001, 0.3, 0.5, 0.6, 0.9):
        run(library, cache, Selecting(keep_ratio=ratio), exact=True)


@pytest.mark.parametrize(
    "settings",
    [
        Selecting(sink_blocks=3, local_blocks=4),
        Selecting(sink_blocks=8, local_blocks=8),
        Selecting(local_blocks=0),
        Selecting(local_blocks=0, sink_blocks=2, min_blocks=2, keep_ratio=0.001),
        Selecting(min_blocks=200),
        Selecting(min_blocks=1, keep_ratio=1e-6),
        Selecting(keep_ratio=1.0),
        Selecting(dense_below=3000),
    ],
    ids=str,
)
def test_settings(library, settings):
    run(library, make_cache([16 * 2000 + 1, 3000, 3001, 20, 16]), settings)


def test_most_blocks(library):
    """2^20 tokens of one sequence."""
    cache = make_cache([1 << 20], q_heads=2, kv_heads=1, head_dim=64, spare_blocks=0)
    run(library, cache, Selecting())
    run(library, cache, Selecting(keep_ratio=0.9))
    cache.summary.fill_(1.0)
    run(library, cache, Selecting(keep_ratio=0.5), exact=True)


def test_most_sequences(library):
    lengths = [(137 * i) % 2500 for i in range(256)]
    run(library, make_cache(lengths), Selecting())


def test_impossible_lengths_are_ignored(library):
    cache = make_cache([500, 600, 700])
    cache.kv_lens[0] = -5
    cache.kv_lens[2] = cache.block_table.shape[1] * 16 + 1
    out = select(library, cache, Selecting())
    assert out.counts.tolist() == [0, 16, 0]
    assert (out.blocks[[0, 2]] == -7).all()


def test_blocks_outside_the_pool_come_last(library):
    cache = make_cache([16 * 100])
    cache.block_table[0, 10:20] = -1
    cache.block_table[0, 20:30] = len(cache.kv)
    out = select(library, cache, Selecting(min_blocks=80))
    assert not ((out.blocks >= 10) & (out.blocks < 30)).any()


@pytest.mark.parametrize("nans", [1, 50, 5000])
def test_nan_scores_come_first(library, nans):
    cache = make_cache([16 * 5000])
    cache.summary[cache.block_table[0, 7 : 7 + nans].long()] = float("nan")
    out = select(library, cache, Selecting())
    count = int(out.counts[0])
    for head in range(2):
        got = out.of(0, head)
        assert got[-1] == 4999
        assert (got.diff() > 0).all()
        assert torch.isin(torch.arange(7, min(7 + nans, 7 + count - 1), device="cuda"), got).all()


def test_nan_query(library):
    cache = make_cache([16 * 3000])
    cache.q.fill_(float("nan"))
    out = select(library, cache, Selecting())
    assert out.of(0, 1).tolist() == [*range(299), 2999]


def test_two_runs_are_equal(library):
    cache = make_cache([16 * 9000, 16 * 5000], q_heads=8)
    first, second = (select(library, cache, Selecting()) for _ in range(2))
    assert torch.equal(first.blocks, second.blocks)


def test_graph_replay_while_lengths_grow(library):
    settings = Selecting()
    cache = make_cache([16 * 400, 16 * 300])
    lengths = cache.kv_lens.clone()
    out = empty_selection(cache, settings)
    params = select_params(library, cache, settings, out)
    launch(library, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.launch(params, torch.cuda.current_stream().cuda_stream)
    for removed in (6000, 4000, 1000, 16, 0):
        cache.kv_lens.copy_((lengths - removed).clamp(min=0))
        out.blocks.fill_(-7)
        graph.replay()
        torch.cuda.synchronize()
        check(cache, settings, dataclasses.replace(out))
