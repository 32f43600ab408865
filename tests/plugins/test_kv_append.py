"""kv_append on a GPU against the reference beside this file."""

from __future__ import annotations

import copy
import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tests.plugins import reference  # noqa: E402 (after importorskip)
from tests.plugins.reference import Case, make_case  # noqa: E402
from trt_resa.kernels import KernelLibrary  # noqa: E402

pytestmark = pytest.mark.gpu

# Half a unit in the last place of the stored type, relative to the value.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HALF_SUBNORMAL = {torch.float16: 2.0**-25, torch.bfloat16: 0.0}


def assert_rounded(actual, expected, what: str) -> None:
    """``actual`` is ``expected`` (double) rounded to its type, up to fp32 error before rounding.

    The fp32 error of a rotated pair scales with the pair, not with the result: 4e-6 of the largest
    element bounds it. NaN must stand exactly where the reference has it.
    """
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN in other places"
    if actual.numel() == 0:
        return
    error = (actual.double() - expected).abs().nan_to_num()
    scale = expected.nan_to_num().abs()
    bound = ROUNDING[actual.dtype] * scale + HALF_SUBNORMAL[actual.dtype] + 4e-6 * scale.max()
    worst = (error - bound).argmax()
    assert (error <= bound).all(), (
        f"{what}: element {int(worst)} is {float(actual.flatten()[worst])}, "
        f"not {float(expected.flatten()[worst])}"
    )


def assert_same_bits(actual, expected, what: str) -> None:
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16)), what


def check(case: Case, before: Case) -> None:
    """``case`` holds the result of a call on ``before``."""
    expected = reference.kv_append(before)
    assert_rounded(case.q, expected.q, "q")
    keys, values = case.kv.unbind(1)
    old_keys, old_values = before.kv.unbind(1)
    written = expected.written[:, None, :, None].expand_as(keys)
    assert_rounded(keys[written], expected.kv[:, 0][written], "keys")
    assert torch.equal(values[written].double(), expected.kv[:, 1][written]), "values are copied"
    assert_same_bits(keys[~written], old_keys[~written], "a key outside this call changed")
    assert_same_bits(values[~written], old_values[~written], "a value outside this call changed")

    summary = before.summary.clone()
    for block, valid in expected.valid_slots.items():
        stored = keys[block, :, :valid]
        summary[block] = torch.stack([stored.amin(1), stored.amax(1)], 1)
    touched = torch.zeros(len(summary), dtype=torch.bool, device=summary.device)
    touched[list(expected.valid_slots)] = True
    assert torch.equal(summary[touched], case.summary[touched]), "summary of the stored keys"
    assert_same_bits(summary[~touched], case.summary[~touched], "an untouched summary changed")


def launch(library: KernelLibrary, case: Case) -> None:
    library.launch(case.params(), torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


def run(library: KernelLibrary, case: Case) -> None:
    before = copy.deepcopy(case)
    launch(library, case)
    check(case, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
def test_shapes(library, dtype, head_dim, block_size, qk_norm):
    """A ragged batch: prefill, chunk after a prefix, decode, one on and around each edge."""
    b = block_size
    run(
        library,
        make_case(
            [(3 * b + 5, 3 * b + 5), (2 * b + 7, b + 2), (b + 1, 1), (b, 1), (b - 1, 1), (1, 1)],
            dtype=dtype,
            head_dim=head_dim,
            block_size=block_size,
            qk_norm=qk_norm,
        ),
    )


@pytest.mark.parametrize(
    "sequence",
    [(1, 1), (15, 1), (16, 1), (17, 1), (15, 15), (16, 16), (17, 17), (33, 2), (32, 16), (48, 32)],
    ids=str,
)
def test_block_edges(library, sequence):
    run(library, make_case([sequence]))


@pytest.mark.parametrize("group", [1, 3, 7, 8])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_groups(library, group, kv_heads):
    run(library, make_case([(40, 20), (17, 1)], q_heads=group * kv_heads, kv_heads=kv_heads))


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("rotary_dim", [0, 16, 32, 48, 64])
def test_partial_rotary(library, head_dim, rotary_dim):
    run(library, make_case([(40, 20)], head_dim=head_dim, rotary_dim=rotary_dim, qk_norm=True))


def test_norm_of_one_side_only(library):
    case = make_case([(20, 4)], qk_norm=True)
    run(library, dataclasses.replace(case, q_norm=None))
    case = make_case([(20, 4)], qk_norm=True)
    run(library, dataclasses.replace(case, k_norm=None))


def test_rope_scale(library):
    run(library, make_case([(40, 20)], rope_scale=1.2079441541679836))


@pytest.mark.parametrize("rope_base", [1e4, 1e6, 5e8])
def test_positions_near_2_to_the_20(library, rope_base):
    """The cache stays short: position_ids alone set the angle."""
    offset = (1 << 20) - 40
    run(library, make_case([(40, 20)], position_offset=offset, rope_base=rope_base))


def test_empty_sequences_and_padding_rows_are_ignored(library):
    run(library, make_case([(20, 0), (33, 2), (16, 0), (0, 0), (5, 5), (9, 0)], padding_rows=7))


def test_more_sequences_than_a_warp_scans_at_once(library):
    sequences = [(16 + n, n % 4) for n in range(75)]
    run(library, make_case(sequences, padding_rows=3))


def test_nothing_but_padding(library):
    run(library, make_case([(20, 0), (5, 0)], padding_rows=4))


def test_long_prefill(library):
    run(library, make_case([(2000, 1999), (700, 600)], q_heads=28, kv_heads=4))


def test_impossible_sequences_write_nothing(library):
    """More rows than tokens, and rows beyond the last one, are ignored; the others are served."""
    case = make_case([(20, 4), (40, 2), (9, 3)])
    case.kv_lens[0] = 3
    case.cu_query_lens[3] = 1000
    before = copy.deepcopy(case)
    launch(library, case)
    assert case.q[:4].isnan().all()
    assert not case.q[4:6].isnan().any()
    assert case.q[6:].isnan().all()
    served = before.block_table[1, 2]
    others = torch.arange(len(case.kv), device=case.kv.device) != served
    assert_same_bits(case.kv[others], before.kv[others], "a block of an ignored sequence changed")


@pytest.mark.parametrize("entry", [-1, 1 << 30])
def test_block_outside_the_pool_is_not_written(library, entry):
    case = make_case([(20, 4)])
    case.block_table[0, 1] = entry
    before = copy.deepcopy(case)
    launch(library, case)
    assert not case.q.isnan().any()
    assert_same_bits(case.kv, before.kv, "the cache changed")
    assert_same_bits(case.summary, before.summary, "a summary changed")


def test_rewritten_keys_shrink_the_summary(library):
    case = make_case([(40, 24)])
    case.qkv *= 100
    launch(library, case)
    wide = case.summary.clone()
    case.qkv /= 100
    run(library, case)
    last = case.block_table[0, 2]
    assert (case.summary[last, :, 1] < wide[last, :, 1]).any()
    assert (case.summary[last, :, 0] > wide[last, :, 0]).any()


def test_truncated_sequence_forgets_the_keys_beyond_its_end(library):
    """After a rejected draft the next append starts inside a block that holds stale keys."""
    case = make_case([(30, 30)])
    case.qkv *= 100
    launch(library, case)
    case = dataclasses.replace(
        case,
        qkv=case.qkv[:2] / 100,
        q=case.q[:2].clone(),
        position_ids=torch.tensor([18, 19], dtype=torch.int32, device="cuda"),
    )
    case.kv_lens[0] = 20
    case.cu_query_lens[1] = 2
    run(library, case)


def test_recycled_block(library):
    """A block full of another sequence's keys is taken for a new sequence."""
    case = make_case([(3, 3)])
    block = case.block_table[0, 0]
    case.kv[block] = 1000
    case.summary[block] = 1000
    run(library, case)
    assert case.summary[block].abs().max() < 100


def test_nan_key_shows_in_the_summary(library):
    case = make_case([(4, 4)], rotary_dim=0)
    case.qkv[1] = float("nan")
    launch(library, case)
    assert case.summary[case.block_table[0, 0]].isnan().all()


def test_graph_replay_follows_the_data(library):
    """One capture serves other lengths, other blocks and other amounts of padding."""
    first = make_case([(20, 4), (33, 1), (0, 0)], padding_rows=27)
    case = copy.deepcopy(first)
    launch(library, copy.deepcopy(case))  # loads the kernel outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.launch(case.params(), torch.cuda.current_stream().cuda_stream)

    longest = [(39, 17), (30, 14), (1, 1)]  # as many rows, and no more blocks
    for seed, sequences in enumerate([[(20, 4), (33, 1), (0, 0)], longest, [(3, 0)] * 3]):
        rows = sum(n for _, n in sequences)
        fresh = make_case(sequences, padding_rows=32 - rows, seed=seed)
        for field in dataclasses.fields(Case):
            target, source = getattr(case, field.name), getattr(fresh, field.name)
            if not isinstance(target, torch.Tensor):
                continue
            if field.name == "block_table":
                target.fill_(-1)
                target[:, : source.shape[1]] = source
            elif field.name in {"kv", "summary"}:
                target.fill_(float("nan"))
                target[: len(source)] = source
            else:
                target.copy_(source)
        before = copy.deepcopy(case)
        graph.replay()
        torch.cuda.synchronize()
        check(case, before)
