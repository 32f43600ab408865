"""The step contract: every tensor of a forward, named once.

A forward takes the packed tokens of B sequences (T rows), appends their K/V to the paged cache and
returns the logits of R rows. The builder names engine inputs from here, every executor binds them
from here, the tests compare against here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from trt_resa.config import SparseAttentionConfig

Int32Array = npt.NDArray[np.int32]

INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
CU_QUERY_LENS = "cu_query_lens"
KV_LENS = "kv_lens"
BLOCK_TABLE = "block_table"
LOGIT_ROWS = "logit_rows"
PHASE = "phase"
KV_POOL = "kv_pool"
SUMMARY_POOL = "summary_pool"
LOGITS = "logits"


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a contract tensor.

    Symbols: T rows, B sequences, R logit rows, M blocks per sequence, L layers, P phase extent, V
    vocabulary.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    meaning: str


INPUTS = (
    TensorSpec(INPUT_IDS, "int32", ("T",), "packed tokens of the batch"),
    TensorSpec(POSITION_IDS, "int32", ("T",), "position of each token in its sequence"),
    TensorSpec(CU_QUERY_LENS, "int32", ("B+1",), "first row of each sequence"),
    TensorSpec(KV_LENS, "int32", ("B",), "tokens in the cache after this forward's append"),
    TensorSpec(BLOCK_TABLE, "int32", ("B", "M"), "pool block of each block; -1 where unused"),
    TensorSpec(LOGIT_ROWS, "int32", ("R",), "rows whose logits are wanted"),
    TensorSpec(PHASE, "int8", ("P",), "extent 0: sparse step; extent 1: dense pass"),
    TensorSpec(KV_POOL, "int64", ("L",), "device address of each layer's kv buffer"),
    TensorSpec(SUMMARY_POOL, "int64", ("L",), "device address of each layer's summary buffer"),
)
OUTPUTS = (TensorSpec(LOGITS, "float32", ("R", "V"), "logits of the wanted rows"),)


class Phase(Enum):
    """What a forward is; the value is the extent of the ``phase`` tensor."""

    SPARSE = 0
    DENSE = 1


@dataclass(frozen=True)
class Step:
    """Host arrays of one forward, in the contract's types and shapes.

    ``sparse``: what the selection of this sparse step follows; None: the executor's own settings.
    """

    phase: Phase
    input_ids: Int32Array
    position_ids: Int32Array
    cu_query_lens: Int32Array
    kv_lens: Int32Array
    block_table: Int32Array
    logit_rows: Int32Array
    sparse: SparseAttentionConfig | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def batch_size(self) -> int:
        return len(self.kv_lens)


def max_logit_rows(max_batch_size: int, rectify_interval: int) -> int:
    """Logit rows that one forward can return, and the most rows of rectification in one.

    A decode step wants one row per sequence, a verification all rows of one window.
    """
    return max(max_batch_size, rectify_interval)
