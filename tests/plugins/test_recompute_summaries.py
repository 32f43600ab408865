"""recompute_summaries on a GPU against torch's minima and maxima, and its refusals without one."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.plugins.dense_reference import DTYPES, make_dense_case  # noqa: E402 (importorskip)
from trt_resa.kernel_params import RecomputeSummariesParams, Status  # noqa: E402
from trt_resa.kernels import KernelLaunchError  # noqa: E402

gpu = pytest.mark.gpu
ADDRESS = 1 << 20  # aligned, and never read: every call with it is refused before a launch


@gpu
@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_ranges(library, block_size, head_dim, dtype):
    """Whole sequences, parts, ends behind the last block, empty and negative ranges."""
    kv_lens = [1, block_size, 5 * block_size + 3, 7 * block_size, 300 * block_size, 0, 90]
    ranges = [(0, 1), (0, 9), (2, 6), (3, 5), (-2, 300), (0, 4), (2, 1)]
    case = make_dense_case(
        [(kv_len, 0) for kv_len in kv_lens], head_dim=head_dim, block_size=block_size, dtype=dtype
    )
    case.block_table[4, 7] = -1
    num_blocks, _, kv_heads = case.kv.shape[:3]
    summary = torch.full((num_blocks, kv_heads, 2, head_dim), -7.0, dtype=dtype, device="cuda")
    expected = summary.clone()
    for sequence, (kv_len, (first, end)) in enumerate(zip(kv_lens, ranges, strict=True)):
        for index in range(max(first, 0), min(end, math.ceil(kv_len / block_size))):
            block = int(case.block_table[sequence, index])
            if block >= 0:
                keys = case.kv[block, 0, :, : kv_len - index * block_size]
                expected[block] = torch.stack([keys.amin(1), keys.amax(1)], 1)

    first_blocks = torch.tensor([r[0] for r in ranges], dtype=torch.int32, device="cuda")
    end_blocks = torch.tensor([r[1] for r in ranges], dtype=torch.int32, device="cuda")
    params = RecomputeSummariesParams(
        first_blocks=first_blocks.data_ptr(),
        end_blocks=end_blocks.data_ptr(),
        kv_lens=case.kv_lens.data_ptr(),
        block_table=case.block_table.data_ptr(),
        kv=case.kv.data_ptr(),
        summary=summary.data_ptr(),
        batch_size=len(kv_lens),
        max_blocks_per_seq=case.block_table.shape[1],
        num_blocks=num_blocks,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=DTYPES[dtype],
    )
    library.launch(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(summary, expected)


def valid_params(**changes: Any) -> RecomputeSummariesParams:
    """Parameters that no check refuses, with ``changes``."""
    values: dict[str, Any] = dict.fromkeys(
        ("first_blocks", "end_blocks", "kv_lens", "block_table", "kv", "summary"), ADDRESS
    )
    values |= {
        "batch_size": 2,
        "max_blocks_per_seq": 8,
        "num_blocks": 32,
        "kv_heads": 4,
        "head_dim": 128,
        "block_size": 16,
        "dtype": 0,
    }
    return RecomputeSummariesParams(**values | changes)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        *(
            ({name: None}, Status.NULL_POINTER)
            for name in ("first_blocks", "end_blocks", "kv_lens", "block_table", "kv", "summary")
        ),
        ({"kv": ADDRESS + 8}, Status.MISALIGNED_POINTER),
        ({"summary": ADDRESS + 8}, Status.MISALIGNED_POINTER),
        ({"dtype": 2}, Status.BAD_DTYPE),
        ({"head_dim": 80}, Status.BAD_HEAD_DIM),
        ({"block_size": 8}, Status.BAD_BLOCK_SIZE),
        ({"kv_heads": 0}, Status.BAD_HEADS),
        ({"batch_size": -1}, Status.BAD_EXTENT),
        ({"num_blocks": 0}, Status.BAD_EXTENT),
        ({"max_blocks_per_seq": 0}, Status.BAD_EXTENT),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(library, changes, status):
    with pytest.raises(KernelLaunchError) as caught:
        library.launch(valid_params(**changes))
    assert caught.value.status == status


def test_no_sequence_is_ok_without_a_gpu(library):
    library.launch(valid_params(batch_size=0))
