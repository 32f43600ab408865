"""sparse_decode on a GPU against attention in double precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.plugins.sparse_case import (  # noqa: E402 (after importorskip)
    NAN,
    Cache,
    Selecting,
    Selection,
    assert_output,
    decode,
    decode_params,
    expected_output,
    launch,
    make_cache,
)

pytestmark = pytest.mark.gpu

DEFAULT = Selecting()


def random_selection(cache: Cache, settings: Selecting = DEFAULT, seed: int = 0) -> Selection:
    """As many blocks as block_select would choose, at random, the last one among them."""
    generator = torch.Generator().manual_seed(seed)
    batch = cache.block_table.shape[0]
    kv_heads = cache.kv.shape[2]
    lengths = cache.kv_lens.tolist()
    counts = [settings.count(n, cache.block_size) for n in lengths]
    blocks = torch.full((batch, kv_heads, max([*counts, 1])), 1 << 30, dtype=torch.int32)
    for seq, (kv_len, count) in enumerate(zip(lengths, counts, strict=True)):
        last = -(-kv_len // cache.block_size) - 1
        for head in range(kv_heads if count else 0):
            chosen = torch.randperm(last, generator=generator)[: count - 1]
            chosen = torch.cat([chosen.sort().values, torch.tensor([last])])
            blocks[seq, head, :count] = chosen.to(torch.int32)
    counts_tensor = torch.tensor(counts, dtype=torch.int32)
    return Selection(blocks.to(cache.q.device), counts_tensor.to(cache.q.device))


def run(library, cache: Cache, settings: Selecting = DEFAULT) -> None:
    selection = random_selection(cache, settings)
    assert_output(decode(library, cache, selection), expected_output(cache, selection))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("group", [2, 12])
def test_shapes(library, dtype, head_dim, block_size, group):
    cache = make_cache(
        [300 * block_size + 3, 0, 33 * block_size, 1],
        q_heads=2 * group,
        dtype=dtype,
        head_dim=head_dim,
        block_size=block_size,
    )
    run(library, cache)


@pytest.mark.parametrize("kv_len", [1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 1023, 1025, 9000])
@pytest.mark.parametrize("block_size", [16, 64])
def test_block_edges(library, kv_len, block_size):
    run(library, make_cache([kv_len], block_size=block_size, seed=kv_len))


@pytest.mark.parametrize("group", [1, 3, 7, 8, 9, 16])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_groups(library, group, kv_heads):
    run(library, make_cache([5000, 1200], q_heads=group * kv_heads, kv_heads=kv_heads))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_all_blocks(library, head_dim):
    """Equals dense attention."""
    cache = make_cache([5003, 777, 16], q_heads=14, head_dim=head_dim)
    run(library, cache, Selecting(keep_ratio=1.0))


def test_many_tiles_per_warp(library):
    """More than the 32 tiles that a warp looks up at a time."""
    lengths = [16 * 5000] * 12
    run(library, make_cache(lengths, q_heads=4, head_dim=64), Selecting(keep_ratio=1.0))


def test_most_blocks(library):
    cache = make_cache([1 << 20], q_heads=2, kv_heads=1, head_dim=64, spare_blocks=0)
    run(library, cache)


def test_most_sequences(library):
    run(library, make_cache([(137 * i) % 2500 for i in range(256)]))


def test_large_scores(library):
    """Weights of most keys vanish, and a warp's first maximum is far from the last."""
    cache = make_cache([4000], q_heads=14)
    cache.q *= 20
    run(library, cache)


def test_equal_keys(library):
    cache = make_cache([1600], q_heads=14)
    seen = ~cache.kv[:, 0].isnan()
    cache.kv[:, 0][seen] = 0.5
    run(library, cache)


def test_entries_outside_sequence_and_pool_are_passed_over(library):
    cache = make_cache([16 * 100])
    selection = random_selection(cache, Selecting(min_blocks=40))
    clean = selection.blocks.clone()
    extra = torch.tensor([-1, 1 << 20, 101], dtype=torch.int32, device="cuda").expand(1, 2, 3)
    selection.blocks = torch.cat([extra[..., :1], clean, extra[..., 1:]], 2).contiguous()
    selection.counts += 3
    expected = expected_output(cache, Selection(clean, selection.counts - 3))
    assert_output(decode(library, cache, selection), expected)


def test_nothing_seen_gives_zeros(library):
    cache = make_cache([16 * 100, 50])
    selection = random_selection(cache)
    selection.counts[0] = 0
    out = decode(library, cache, selection)
    assert (out[0] == 0).all()
    assert not out[1].isnan().any()
    selection = random_selection(cache)
    cache.block_table[0] = -1
    assert (decode(library, cache, selection)[0] == 0).all()


def test_nan_key_shows(library):
    cache = make_cache([16 * 100])
    selection = random_selection(cache)
    cache.kv[cache.block_table[0, selection.blocks[0, 0, 3]], 0, 0, 5] = NAN
    out = decode(library, cache, selection)
    assert out[0, :2].isnan().all()
    assert not out[0, 2:].isnan().any()


def test_two_runs_are_equal(library):
    cache = make_cache([16 * 9000, 16 * 5000], q_heads=14)
    selection = random_selection(cache)
    first, second = (decode(library, cache, selection) for _ in range(2))
    assert torch.equal(first, second)


def test_graph_replay_while_lengths_grow(library):
    cache = make_cache([16 * 400, 16 * 300])
    lengths = cache.kv_lens.clone()
    selection = random_selection(cache)
    out = torch.full_like(cache.q, NAN)
    params = decode_params(library, cache, selection, out)
    launch(library, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.launch(params, torch.cuda.current_stream().cuda_stream)
    for removed in (6000, 4000, 1000, 16, 0):
        cache.kv_lens.copy_((lengths - removed).clamp(min=0))
        fresh = random_selection(cache, seed=removed)
        selection.blocks[..., : fresh.blocks.shape[2]] = fresh.blocks
        selection.counts.copy_(fresh.counts)
        out.fill_(NAN)
        graph.replay()
        torch.cuda.synchronize()
        assert_output(out, expected_output(cache, selection))
