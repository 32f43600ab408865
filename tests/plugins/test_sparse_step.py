"""sparse_step gives the bits of kv_append, block_select and sparse_decode one after another."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from tests.plugins.reference import Case, make_case  # noqa: E402 (after importorskip)
from tests.plugins.sparse_case import (  # noqa: E402
    NAN,
    Cache,
    Selecting,
    assert_output,
    buffers,
    decode,
    expected_output,
    launch,
    select,
)
from trt_resa.kernel_params import SparseStepParams  # noqa: E402

pytestmark = pytest.mark.gpu

DEFAULT = Selecting()


def make_step(sequences, **shape) -> Case:
    """A case of kv_append whose older blocks have their summaries."""
    case = make_case(sequences, **shape)
    block_size = case.kv.shape[3]
    for seq, (kv_len, appended) in enumerate(sequences):
        full = max(kv_len - appended, 0) // block_size
        ids = case.block_table[seq, :full].long()
        keys = case.kv[ids, 0]
        case.summary[ids] = torch.stack([keys.amin(2), keys.amax(2)], 2)
    return case


def step_params(library, case: Case, settings: Selecting, out) -> SparseStepParams:
    append = case.params()
    names = {name for name, _ in SparseStepParams._fields_}
    params = SparseStepParams(
        **{name: getattr(append, name) for name, _ in append._fields_ if name in names},
        out=out.data_ptr(),
        workspace=None,
        counters=None,
        settled=1,
        softmax_scale=1 / math.sqrt(case.q.shape[2]),
        **dataclasses.asdict(settings),
    )
    buffers(library, params, case.q.device)
    return params


def one_after_another(library, case: Case, settings: Selecting):
    """The output of the three kernels; ``case`` becomes what kv_append makes of it."""
    library.launch(case.params(), torch.cuda.current_stream().cuda_stream)
    starts = case.cu_query_lens[:-1].long()
    rows = case.cu_query_lens.diff()
    kv_lens = case.kv_lens.masked_fill(rows != 1, 0)
    q = case.q[starts.clamp(max=len(case.q) - 1)]
    cache = Cache(q, case.kv, case.summary, kv_lens, case.block_table)
    selection = select(library, cache, settings)
    by_sequence = decode(library, cache, selection)
    assert_output(by_sequence, expected_output(cache, selection))
    out = torch.full_like(case.q, NAN)
    used = kv_lens > 0
    out[starts[used]] = by_sequence[used]
    return out


def assert_same_bits(actual, expected, what: str) -> None:
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16)), what


def check(library, case: Case, before: Case, settings: Selecting, out) -> None:
    """``case`` and ``out`` hold the result of a step on ``before``."""
    expected = one_after_another(library, before, settings)
    for name in ("q", "kv", "summary"):
        assert_same_bits(getattr(case, name), getattr(before, name), name)
    assert torch.equal(out.isnan(), expected.isnan()), "rows that are written"
    # Parts of the keys may be divided otherwise, so that sums are rounded otherwise.
    assert_output(out, expected.double())


def run(library, case: Case, settings: Selecting = DEFAULT) -> None:
    before = copy.deepcopy(case)
    out = torch.full_like(case.q, NAN)
    launch(library, step_params(library, case, settings, out))
    check(library, case, before, settings, out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("group", [2, 12])
def test_shapes(library, dtype, head_dim, block_size, group):
    sequences = [(40 * block_size + 3, 1), (33 * block_size, 1), (block_size + 1, 1), (1, 1)]
    shape = {"dtype": dtype, "head_dim": head_dim, "block_size": block_size}
    run(library, make_step(sequences, q_heads=2 * group, qk_norm=True, **shape))


@pytest.mark.parametrize("kv_len", [1, 2, 15, 16, 17, 255, 256, 257, 1025, 30000])
def test_block_edges(library, kv_len):
    run(library, make_step([(kv_len, 1)], q_heads=28, kv_heads=4))


@pytest.mark.parametrize("kv_len", [60, 90, 130, 250])
def test_fewer_blocks_than_a_team(library, kv_len):
    """What the launch before left in a multiprocessor's shared memory counts for nothing."""
    run(library, make_step([(30000, 1)], q_heads=28, kv_heads=4))
    run(library, make_step([(kv_len, 1)], q_heads=28, kv_heads=4), Selecting(min_blocks=2))


@pytest.mark.parametrize(
    "settings",
    [
        Selecting(sink_blocks=3, local_blocks=4),
        Selecting(min_blocks=1, keep_ratio=0.001),
        Selecting(keep_ratio=1.0),
        Selecting(dense_below=3000),
    ],
    ids=str,
)
def test_settings(library, settings):
    sequences = [(9000, 1), (3000, 1), (3001, 1), (20, 1)]
    run(library, make_step(sequences, q_heads=14), settings)


def test_unlike_lengths(library):
    """Too unlike for a team of thread blocks per row, where a GPU has them."""
    run(library, make_step([(120000, 1), (100, 1), (0, 0), (3000, 1)], q_heads=14))


def test_ignored_sequences_and_padding_rows(library):
    """No row, no token, several rows: nothing of theirs is written."""
    sequences = [(700, 1), (500, 0), (0, 1), (900, 1), (0, 0)]
    run(library, make_step(sequences, padding_rows=3))
    case = make_step([(700, 1), (40, 2), (900, 1)])
    out = torch.full_like(case.q, NAN)
    launch(library, step_params(library, case, DEFAULT, out))
    assert out[1:3].isnan().all()
    assert not out[[0, 3]].isnan().any()


def test_nothing_but_ignored_sequences(library):
    run(library, make_step([(0, 1), (20, 0)]))


def test_most_sequences(library):
    run(library, make_step([((137 * i) % 2500, 1) for i in range(256)], head_dim=64))


def test_graph_replay_while_lengths_grow(library):
    """A captured step serves every length within its extents; counters reset themselves."""
    case = make_step([(6000, 1), (3000, 1), (4000, 1)], q_heads=14)
    out = torch.full_like(case.q, NAN)
    params = step_params(library, case, DEFAULT, out)
    launch(library, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.launch(params, torch.cuda.current_stream().cuda_stream)
    for seed, lengths in enumerate([(20, 1, 0), (700, 699, 5), (5999, 17, 256), (6000, 3000, 16)]):
        fresh = make_step([(n, 1) for n in lengths], q_heads=14, seed=seed)
        case.block_table.fill_(-1)
        case.block_table[:, : fresh.block_table.shape[1]] = fresh.block_table
        for name in ("kv", "summary"):
            getattr(case, name).fill_(NAN)
            getattr(case, name)[: len(getattr(fresh, name))] = getattr(fresh, name)
        for name in ("qkv", "position_ids", "kv_lens", "q"):
            getattr(case, name).copy_(getattr(fresh, name))
        out.fill_(NAN)
        before = copy.deepcopy(case)
        graph.replay()
        torch.cuda.synchronize()
        check(library, case, before, DEFAULT, out)


def test_counters_and_lengths_that_are_written_right_before(library):
    """As TensorRT may, and the plugin does in a workspace that others have written to."""
    case = make_step([(9000, 1), (8000, 1)], q_heads=14)
    before = copy.deepcopy(case)
    out = torch.full_like(case.q, NAN)
    params = step_params(library, case, DEFAULT, out)
    params.settled = 0
    kv_lens = case.kv_lens.clone()
    for turn in range(50):
        params.counters_tensor.fill_(0x47)
        case.kv_lens.fill_(7)
        if turn % 2 == 0:
            case.kv_lens.copy_(kv_lens)
        params.counters_tensor.zero_()
        if turn % 2 == 1:
            case.kv_lens.copy_(kv_lens)
        library.launch(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    check(library, case, before, DEFAULT, out)


def test_counters_of_the_largest_batch_serve_all(library):
    """Batches of different sizes, one after another on one buffer of counters."""
    cases = [
        make_step([(2000 + 300 * i, 1) for i in range(batch)], q_heads=14, seed=batch)
        for batch in (5, 1, 3, 5, 2)
    ]
    outs = [torch.full_like(case.q, NAN) for case in cases]
    pairs = zip(cases, outs, strict=True)
    steps = [step_params(library, case, DEFAULT, out) for case, out in pairs]
    for step in steps:
        step.counters = steps[0].counters
    before = copy.deepcopy(cases)
    for step in steps:
        library.launch(step, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    for case, untouched, out in zip(cases, before, outs, strict=True):
        check(library, case, untouched, DEFAULT, out)


@pytest.mark.parametrize("kv_len", [64 * 40 + n for n in (1, 15, 16, 17, 33, 48, 63)])
def test_new_token_anywhere_in_a_block_of_several_tiles(library, kv_len):
    """Parts may share the last block; each that has a piece of it waits for the append."""
    for _ in range(20):
        run(library, make_step([(kv_len, 1)] * 3, q_heads=8, kv_heads=4, block_size=64))


def test_two_streams_do_not_meet(library):
    """Launches that overlap, each with its own buffers, give the bits of launches alone."""
    cases = [make_step([(30000, 1), (500 + i, 1)], q_heads=14, seed=i) for i in range(2)]
    outs = [torch.full_like(case.q, NAN) for case in cases]
    params = [
        step_params(library, case, DEFAULT, out) for case, out in zip(cases, outs, strict=True)
    ]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(200):
        for stream, one in zip(streams, params, strict=True):
            library.launch(one, stream.cuda_stream)
    torch.cuda.synchronize()
    for case, out in zip(cases, outs, strict=True):
        alone = torch.full_like(out, NAN)
        launch(library, step_params(library, case, DEFAULT, alone))
        assert torch.equal(out, alone)
