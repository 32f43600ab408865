"""What the sparse launches refuse, and what they ask for; no GPU is needed."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from trt_resa.kernel_params import (
    BlockSelectParams,
    KernelParams,
    SparseDecodeParams,
    SparseStepParams,
    Status,
)
from trt_resa.kernels import KernelLaunchError, KernelLibrary

ADDRESS = 1 << 20  # aligned, and never read: every call with it is refused before a launch
PARAMS = (BlockSelectParams, SparseDecodeParams, SparseStepParams)
VALUES = {
    "num_rows": 4,
    "batch_size": 4,
    "max_blocks_per_seq": 1024,
    "num_blocks": 4096,
    "max_selected": 103,
    "q_heads": 28,
    "kv_heads": 4,
    "head_dim": 128,
    "block_size": 16,
    "rotary_dim": 128,
    "min_blocks": 16,
    "local_blocks": 1,
    "sink_blocks": 0,
    "dense_below": 0,
    "dtype": 0,
    "indirect": 0,
    "settled": 0,
    "rope_scale": 1.0,
    "norm_eps": 1e-6,
    "softmax_scale": 0.1,
    "keep_ratio": 0.1,
}


def valid(params: type[KernelParams], **changes: Any) -> KernelParams:
    values: dict[str, Any] = {
        name: ADDRESS if kind is ctypes.c_void_p else VALUES[name] for name, kind in params._fields_
    }
    return params(**values | changes)


def status_of(call, *arguments: Any) -> int:
    try:
        call(*arguments)
    except KernelLaunchError as error:
        return error.status
    return Status.OK


def cases() -> list[Any]:
    changes = [
        ({"dtype": 2}, Status.BAD_DTYPE),
        ({"head_dim": 80}, Status.BAD_HEAD_DIM),
        ({"block_size": 8}, Status.BAD_BLOCK_SIZE),
        ({"q_heads": 0}, Status.BAD_HEADS),
        ({"q_heads": 30}, Status.BAD_HEADS),
        ({"q_heads": 68}, Status.BAD_HEADS),
        ({"kv_heads": 0}, Status.BAD_HEADS),
        ({"batch_size": -1}, Status.BAD_EXTENT),
        ({"batch_size": 257}, Status.BAD_EXTENT),
        ({"max_blocks_per_seq": 0}, Status.BAD_EXTENT),
        ({"num_blocks": 0}, Status.BAD_EXTENT),
        ({"max_selected": -1}, Status.BAD_EXTENT),
        ({"softmax_scale": 0.0}, Status.BAD_SCALE),
        ({"softmax_scale": float("nan")}, Status.BAD_SCALE),
        ({"rotary_dim": 24}, Status.BAD_ROTARY_DIM),
        ({"num_rows": -1}, Status.BAD_EXTENT),
        ({"keep_ratio": 0.0}, Status.BAD_SELECTION),
        ({"keep_ratio": 1.01}, Status.BAD_SELECTION),
        ({"keep_ratio": float("nan")}, Status.BAD_SELECTION),
        ({"min_blocks": 0}, Status.BAD_SELECTION),
        ({"local_blocks": -1}, Status.BAD_SELECTION),
        ({"sink_blocks": -1}, Status.BAD_SELECTION),
        ({"dense_below": -1}, Status.BAD_SELECTION),
        ({"sink_blocks": 10, "local_blocks": 7}, Status.BAD_SELECTION),
    ]
    out = [
        (params, change, status)
        for params in PARAMS
        for change, status in changes
        if change.keys() <= {name for name, _ in params._fields_}
    ]
    out += [
        (BlockSelectParams, {"max_blocks_per_seq": 65537}, Status.BAD_EXTENT),
        (SparseStepParams, {"max_blocks_per_seq": 65537}, Status.BAD_EXTENT),
        (BlockSelectParams, {"max_selected": 102}, Status.BAD_EXTENT),
        (BlockSelectParams, {"dense_below": 16 * 104}, Status.BAD_EXTENT),
        (SparseStepParams, {"local_blocks": 0}, Status.BAD_SELECTION),
        (SparseStepParams, {"norm_eps": 0.0}, Status.BAD_EPSILON),
    ]
    return out


@pytest.mark.parametrize(
    ("params", "changes", "status"),
    cases(),
    ids=lambda value: getattr(value, "kernel", None) or str(value),
)
def test_bad_parameters_are_refused(library: KernelLibrary, params, changes, status):
    assert status_of(library.launch, valid(params, **changes)) == status


@pytest.mark.parametrize("params", PARAMS, ids=lambda params: params.kernel)
def test_null_and_misaligned_pointers_are_refused(library: KernelLibrary, params):
    for name, kind in params._fields_:
        if kind is not ctypes.c_void_p:
            continue
        if name not in {"q_norm", "k_norm"}:
            assert status_of(library.launch, valid(params, **{name: None})) == Status.NULL_POINTER
        if name in {"q", "kv", "summary", "out", "qkv", "q_norm", "workspace", "counters"}:
            shifted = valid(params, **{name: ADDRESS + 8})
            assert status_of(library.launch, shifted) == Status.MISALIGNED_POINTER


@pytest.mark.parametrize("params", PARAMS, ids=lambda params: params.kernel)
def test_nothing_to_do_is_ok_without_a_gpu(library: KernelLibrary, params):
    assert status_of(library.launch, valid(params, batch_size=0)) == Status.OK


@pytest.mark.parametrize("params", PARAMS, ids=lambda params: params.kernel)
def test_buffers_grow_with_the_extents(library: KernelLibrary, params):
    small, large = valid(params), valid(params, batch_size=64)
    assert 0 < library.workspace_bytes(small) < library.workspace_bytes(large)
    assert 0 < library.counter_bytes(small) < library.counter_bytes(large)
    bad = valid(params, head_dim=80)
    assert status_of(library.workspace_bytes, bad) == Status.BAD_HEAD_DIM
    assert status_of(library.counter_bytes, bad) == Status.BAD_HEAD_DIM


def test_room_of_a_block(library: KernelLibrary):
    """Its key and its terms, and each head's sums by 32 blocks: 7 heads take the room of 8."""
    few = valid(BlockSelectParams, max_blocks_per_seq=1024)
    many = valid(BlockSelectParams, max_blocks_per_seq=2048, max_selected=205)
    grown = library.workspace_bytes(many) - library.workspace_bytes(few)
    rows = 4 * 4
    assert grown == rows * (1024 * 4 * (1 + 8) + 1024 // 32 * 8 * 8)
