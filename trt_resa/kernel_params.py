"""The kernel library's C types: statuses, element types, and the parameters of each launch.

The C side is ``plugins/include/trt_resa``; tests compare every name, type and value with it, and
loading refuses a library whose structs have another size.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any, ClassVar


class Status(enum.IntEnum):
    """``enum trt_resa_status``. ``CUDA_ERROR`` + n is error n of the CUDA runtime."""

    OK = 0
    NULL_POINTER = 1
    MISALIGNED_POINTER = 2
    BAD_DTYPE = 3
    BAD_HEAD_DIM = 4
    BAD_BLOCK_SIZE = 5
    BAD_HEADS = 6
    BAD_ROTARY_DIM = 7
    BAD_EXTENT = 8
    BAD_EPSILON = 9
    BAD_SCALE = 10
    BAD_SELECTION = 11
    CUDA_ERROR = 1000


class KernelDtype(enum.IntEnum):
    """``enum trt_resa_dtype``."""

    FLOAT16 = 0
    BFLOAT16 = 1


def _layout(pointers: str, extents: str, floats: str = "", doubles: str = "") -> list[Any]:
    """Fields of a params struct: device pointers, then int32 extents, then scalars."""
    kinds = (
        (pointers, ctypes.c_void_p),
        (extents, ctypes.c_int32),
        (floats, ctypes.c_float),
        (doubles, ctypes.c_double),
    )
    return [(name, kind) for names, kind in kinds for name in names.split()]


class KernelParams(ctypes.Structure):
    """Base of the parameter structs: every field must be given, by name.

    A bare ``ctypes.Structure`` takes an unknown name as a new attribute and a missing one as zero.
    Only ``indirect`` and ``settled`` may be left out: callers in Python know the addresses of the
    pools, and a launch that waits for what is before it is right anyway.
    """

    kernel: ClassVar[str]
    needs_workspace: ClassVar[bool] = False
    needs_counters: ClassVar[bool] = False

    def __init__(self, **values: Any) -> None:
        wanted = {field[0] for field in self._fields_}
        required = wanted - {"indirect", "settled"}
        if not required <= values.keys() <= wanted:
            missing = sorted(required - values.keys())
            unknown = sorted(values.keys() - wanted)
            raise TypeError(f"{type(self).__name__}: missing {missing}, unknown {unknown}")
        super().__init__(**values)


class KvAppendParams(KernelParams):
    """``trt_resa_kv_append_params``; shapes and meanings stand in ``trt_resa/kv_append.h``."""

    kernel = "kv_append"
    _fields_ = _layout(
        pointers=(
            "qkv position_ids cu_query_lens kv_lens block_table inv_freq q_norm k_norm q kv summary"
        ),
        extents=(
            "num_rows batch_size max_blocks_per_seq num_blocks q_heads kv_heads head_dim "
            "block_size rotary_dim dtype indirect"
        ),
        floats="rope_scale norm_eps",
    )


class DenseAttentionParams(KernelParams):
    """``trt_resa_dense_attention_params``; shapes stand in ``trt_resa/dense_attention.h``."""

    kernel = "dense_attention"
    needs_workspace = True
    _fields_ = _layout(
        pointers="q cu_query_lens kv_lens block_table kv out workspace",
        extents=(
            "num_rows batch_size max_blocks_per_seq num_blocks q_heads kv_heads head_dim "
            "block_size dtype indirect"
        ),
        floats="softmax_scale",
    )


class RecomputeSummariesParams(KernelParams):
    """``trt_resa_recompute_summaries_params``; see ``trt_resa/recompute_summaries.h``."""

    kernel = "recompute_summaries"
    _fields_ = _layout(
        pointers="first_blocks end_blocks kv_lens block_table kv summary",
        extents="batch_size max_blocks_per_seq num_blocks kv_heads head_dim block_size dtype",
    )


class BlockSelectParams(KernelParams):
    """``trt_resa_block_select_params``; shapes stand in ``trt_resa/block_select.h``."""

    kernel = "block_select"
    needs_workspace = True
    needs_counters = True
    _fields_ = _layout(
        pointers="q summary kv_lens block_table selection counts workspace counters",
        extents=(
            "batch_size max_blocks_per_seq num_blocks max_selected q_heads kv_heads head_dim "
            "block_size min_blocks local_blocks sink_blocks dense_below dtype settled"
        ),
        floats="softmax_scale",
        doubles="keep_ratio",
    )


class SparseDecodeParams(KernelParams):
    """``trt_resa_sparse_decode_params``; shapes stand in ``trt_resa/sparse_decode.h``."""

    kernel = "sparse_decode"
    needs_workspace = True
    needs_counters = True
    _fields_ = _layout(
        pointers="q kv kv_lens block_table selection counts out workspace counters",
        extents=(
            "batch_size max_blocks_per_seq num_blocks max_selected q_heads kv_heads head_dim "
            "block_size dtype"
        ),
        floats="softmax_scale",
    )


class SparseStepParams(KernelParams):
    """``trt_resa_sparse_step_params``; shapes stand in ``trt_resa/sparse_step.h``."""

    kernel = "sparse_step"
    needs_workspace = True
    needs_counters = True
    _fields_ = _layout(
        pointers=(
            "qkv position_ids cu_query_lens kv_lens block_table inv_freq q_norm k_norm q kv "
            "summary out workspace counters"
        ),
        extents=(
            "num_rows batch_size max_blocks_per_seq num_blocks q_heads kv_heads head_dim "
            "block_size rotary_dim min_blocks local_blocks sink_blocks dense_below dtype indirect "
            "settled"
        ),
        floats="rope_scale norm_eps softmax_scale",
        doubles="keep_ratio",
    )


class Int4LinearParams(KernelParams):
    """``trt_resa_int4_linear_params``; shapes stand in ``trt_resa/int4_linear.h``."""

    kernel = "int4_linear"
    _fields_ = _layout(
        pointers="x weight scales bias residual out",
        extents="num_rows in_columns out_columns swiglu dtype",
    )


class Int4UnpackParams(KernelParams):
    """``trt_resa_int4_unpack_params``; shapes stand in ``trt_resa/int4_unpack.h``."""

    kernel = "int4_unpack"
    _fields_ = _layout(pointers="weight scales out", extents="in_columns out_columns swiglu dtype")


class RmsNormParams(KernelParams):
    """``trt_resa_rms_norm_params``; shapes stand in ``trt_resa/rms_norm.h``."""

    kernel = "rms_norm"
    _fields_ = _layout(pointers="x weight out", extents="num_rows columns dtype", floats="eps")


KERNELS: tuple[type[KernelParams], ...] = (
    KvAppendParams,
    DenseAttentionParams,
    RecomputeSummariesParams,
    BlockSelectParams,
    SparseDecodeParams,
    SparseStepParams,
    Int4LinearParams,
    Int4UnpackParams,
    RmsNormParams,
)
