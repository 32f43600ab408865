"""dense_attention on a GPU against the reference beside this file, and its refusals without one."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.plugins.dense_reference import (  # noqa: E402 (after importorskip)
    DenseCase,
    dense_attention,
    make_dense_case,
)
from trt_resa.kernel_params import DenseAttentionParams, Status  # noqa: E402
from trt_resa.kernels import KernelLaunchError, KernelLibrary  # noqa: E402

gpu = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16]
ADDRESS = 1 << 20  # aligned, and never read: every call with it is refused before a launch

# Error of an element over the largest value of its row, and of all elements over all values (root
# mean square): probabilities and results are rounded to the stored type.
TOLERANCE = {torch.float16: (2e-3, 5e-4), torch.bfloat16: (1.6e-2, 4e-3)}

# (kv_len, query rows): the row counts on and around tiles, and an empty sequence.
RAGGED = [(700, 1), (513, 2), (300, 31), (0, 0), (256, 32), (1000, 33), (128, 128), (417, 200)]


def check(case: DenseCase, expected: torch.Tensor) -> None:
    """NaN must stand exactly where the reference has it; the worst element is reported."""
    assert torch.equal(case.out.isnan(), expected.isnan()), "NaN in other places"
    actual, expected = case.out.to(expected.dtype).nan_to_num(), expected.nan_to_num()
    worst_allowed, rms_allowed = TOLERANCE[case.out.dtype]
    largest = expected.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    relative = (actual - expected).abs() / largest
    worst = int(relative.argmax())
    assert relative.max() <= worst_allowed, (
        f"element {worst} of {tuple(expected.shape)} is {float(actual.flatten()[worst])}, "
        f"not {float(expected.flatten()[worst])}"
    )
    rms = (actual - expected).norm() / expected.norm().clamp_min(1e-6)
    assert rms <= rms_allowed


def run(library: KernelLibrary, case: DenseCase) -> None:
    case.launch(library)
    torch.cuda.synchronize()
    check(case, dense_attention(case))


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_ragged_batch(library, block_size, head_dim, dtype):
    case = make_dense_case(
        RAGGED, block_size=block_size, head_dim=head_dim, dtype=dtype, padding_rows=5
    )
    run(library, case)


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_decode_around_block_edges(library, block_size, head_dim, dtype):
    edges = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 5000]
    sequences = [(kv_len, 1) for kv_len in edges]
    case = make_dense_case(sequences, block_size=block_size, head_dim=head_dim, dtype=dtype)
    run(library, case)


@gpu
@pytest.mark.parametrize("group", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("rows", [1, 2, 32, 130])
def test_groups(library, rows, head_dim, group):
    run(library, make_dense_case([(3000, rows)], group=group, head_dim=head_dim))


@gpu
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("kv_len", [1, 2, 16, 127, 128, 129, 256, 640])
def test_prefill_from_empty(library, kv_len, head_dim):
    run(library, make_dense_case([(kv_len, kv_len)], head_dim=head_dim, kv_heads=1))


@gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_chunk_after_a_prefix(library, head_dim):
    """As many row tiles as fill a GPU, so that whole rows are finished without partial states."""
    case = make_dense_case([(2500, 1500), (3000, 700)], head_dim=head_dim, kv_heads=4)
    run(library, case)


@gpu
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("batch_size", [40, 300])
def test_many_sequences(library, batch_size, rows):
    """More than a warp scans at once, very different lengths, some of them empty."""
    sequences = [
        (0, 0) if i % 5 == 3 else (rows + (i * 37) % 900 + (20000 if i == 17 else 0), rows)
        for i in range(batch_size)
    ]
    run(library, make_dense_case(sequences, group=4, head_dim=64, padding_rows=2))


@gpu
@pytest.mark.parametrize("rows", [1, 2, 16, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_split_keys(library, dtype, rows):
    """A few row tiles against many keys: every one is cut into pieces."""
    run(library, make_dense_case([(40001, rows)], kv_heads=1, dtype=dtype))


@gpu
def test_large_scores(library):
    """One key takes all: the running maximum moves by hundreds."""
    run(library, make_dense_case([(3000, 32), (900, 1)], q_scale=100.0))


@gpu
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_million_tokens(library, head_dim, rows):
    case = make_dense_case([(1 << 20, rows)], kv_heads=1, head_dim=head_dim, q_scale=3.0)
    case.launch(library)
    torch.cuda.synchronize()
    check(case, dense_attention(case, torch.float32))


@gpu
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("head_dim", [96, 128])
def test_blocks_outside_the_pool_read_as_zero(library, head_dim, rows):
    case = make_dense_case([(400, rows)], head_dim=head_dim, spare_blocks=0)
    zero = int(case.block_table[0, 3])
    expected_case = make_dense_case([(400, rows)], head_dim=head_dim, spare_blocks=0)
    expected_case.kv[zero] = 0
    for entry in (-1, 1 << 30, -(1 << 31)):
        case.block_table[0, 3] = entry
        case.launch(library)
        torch.cuda.synchronize()
        check(case, dense_attention(expected_case))


@gpu
@pytest.mark.parametrize("rows", [1, 40])
def test_impossible_sequences_write_nothing(library, rows):
    """More rows than tokens, and rows beyond the last one, are ignored; the others are served."""
    case = make_dense_case([(200, rows), (300, rows), (400, rows)])
    expected = dense_attention(case)
    case.kv_lens[0] = rows - 1
    case.cu_query_lens[3] = 1000
    case.launch(library)
    torch.cuda.synchronize()
    expected[:rows] = float("nan")
    expected[2 * rows :] = float("nan")
    check(case, expected)


@gpu
def test_nothing_but_padding(library):
    case = make_dense_case([(20, 0), (5, 0)], padding_rows=4)
    case.launch(library)
    torch.cuda.synchronize()
    assert case.out.isnan().all()


@gpu
@pytest.mark.parametrize("rows", [1, 2, 32, 150])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_two_runs_give_the_same_bits(library, head_dim, rows):
    case = make_dense_case([(9000, rows), (2000, rows), (31 + rows, rows)], head_dim=head_dim)
    case.launch(library)
    first = case.out.clone()
    case.out.fill_(float("nan"))
    case.workspace.fill_(float("nan"))
    case.launch(library)
    torch.cuda.synchronize()
    assert torch.equal(first, case.out)


@gpu
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("head_dim", [96, 128])
def test_graph_replay_follows_the_data(library, head_dim, rows):
    """One capture serves growing sequences, from no piece per row to many, and padding."""
    case = make_dense_case([(9000, rows), (5000, rows)], head_dim=head_dim)
    case.launch(library)  # loads the kernels outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.launch(library)
    full = case.kv.clone()
    for lengths in ([rows, 40 + rows], [63, 2000], [64, 5000], [9000, 0], [8999, 4999]):
        case.kv_lens.copy_(torch.tensor(lengths))
        last = 2 * rows if lengths[1] else rows
        case.cu_query_lens.copy_(torch.tensor([0, rows, last]))
        case.kv.copy_(full)
        for sequence, length in enumerate(lengths):  # poison what lies behind the end
            tail = case.block_table[sequence, length // 16 :]
            tail = tail[tail >= 0].long()
            case.kv[tail[1:]] = float("nan")
            case.kv[tail[:1], :, :, length % 16 :] = float("nan")
        case.out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        check(case, dense_attention(case))


def valid_params(**changes: Any) -> DenseAttentionParams:
    """Parameters of Qwen2.5-7B's shape that no check refuses, with ``changes``."""
    values: dict[str, Any] = dict.fromkeys(
        ("q", "cu_query_lens", "kv_lens", "block_table", "kv", "out", "workspace"), ADDRESS
    )
    values |= {
        "num_rows": 4,
        "batch_size": 2,
        "max_blocks_per_seq": 8,
        "num_blocks": 32,
        "q_heads": 28,
        "kv_heads": 4,
        "head_dim": 128,
        "block_size": 16,
        "dtype": 0,
        "softmax_scale": 0.1,
    }
    return DenseAttentionParams(**values | changes)


BAD_EXTENTS = [
    ({"dtype": 2}, Status.BAD_DTYPE),
    ({"head_dim": 80}, Status.BAD_HEAD_DIM),
    ({"block_size": 8}, Status.BAD_BLOCK_SIZE),
    ({"q_heads": 0}, Status.BAD_HEADS),
    ({"kv_heads": 0}, Status.BAD_HEADS),
    ({"kv_heads": 3}, Status.BAD_HEADS),
    ({"num_rows": -1}, Status.BAD_EXTENT),
    ({"batch_size": -1}, Status.BAD_EXTENT),
    ({"num_blocks": 0}, Status.BAD_EXTENT),
    ({"max_blocks_per_seq": 0}, Status.BAD_EXTENT),
    ({"softmax_scale": 0.0}, Status.BAD_SCALE),
    ({"softmax_scale": -1.0}, Status.BAD_SCALE),
    ({"softmax_scale": float("nan")}, Status.BAD_SCALE),
]
BAD_POINTERS = [
    *(
        ({name: None}, Status.NULL_POINTER)
        for name in ("q", "cu_query_lens", "kv_lens", "block_table", "kv", "out", "workspace")
    ),
    *(({name: ADDRESS + 8}, Status.MISALIGNED_POINTER) for name in ("q", "kv", "out", "workspace")),
]


@pytest.mark.parametrize(("changes", "status"), BAD_EXTENTS + BAD_POINTERS, ids=str)
def test_bad_parameters_are_refused(library, changes, status):
    with pytest.raises(KernelLaunchError) as caught:
        library.launch(valid_params(**changes))
    assert caught.value.status == status


@pytest.mark.parametrize(("changes", "status"), BAD_EXTENTS, ids=str)
def test_workspace_of_bad_parameters_is_refused(library, changes, status):
    with pytest.raises(KernelLaunchError) as caught:
        library.workspace_bytes(valid_params(**changes))
    assert caught.value.status == status


@pytest.mark.parametrize("changes", [{"num_rows": 0}, {"batch_size": 0}], ids=str)
def test_nothing_to_do_is_ok_without_a_gpu(library, changes):
    library.launch(valid_params(**changes))
