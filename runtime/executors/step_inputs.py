"""The inputs of a forward on the device, at addresses that never change.

The host fills pinned memory and enqueues copies; it waits only when it would overwrite what an
earlier copy has yet to read, so it can be one forward ahead of the GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from trt_resa.contract import (
    BLOCK_TABLE,
    CU_QUERY_LENS,
    INPUT_IDS,
    KV_LENS,
    LOGIT_ROWS,
    POSITION_IDS,
    Step,
)
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import ForwardShape

#: Where each row's token id comes from: an index into [sampled tokens, given ids].
_SOURCES = "sources"
_GIVEN_IDS = "given_ids"
_SLOTS = 2


class StepInputs:
    """Contract tensors [max_num_tokens], [max_batch_size] ... int32; a forward uses their fronts.

    A negative token id -1 - j stands for the token sampled from logit row j of the forward before:
    known on the device, and perhaps not yet on the host.
    """

    def __init__(self, limits: Limits, max_blocks_per_seq: int, device: torch.device) -> None:
        rows, batch = limits.max_num_tokens, limits.max_batch_size
        self.max_blocks_per_seq = max_blocks_per_seq
        self._sampled = limits.max_logit_rows
        sizes = {
            CU_QUERY_LENS: batch + 1,
            KV_LENS: batch,
            LOGIT_ROWS: limits.max_logit_rows,
            POSITION_IDS: rows,
            _SOURCES: rows,
            _GIVEN_IDS: rows,
        }
        # TensorRT and the kernels want addresses that are multiples of 16 bytes; 256 is ample.
        offsets, total = {}, 0
        for name, size in sizes.items():
            offsets[name] = slice(total, total + size)
            total += -(-size // 64) * 64
        # The sampled tokens and the given ids are one array, so that one gather reads both.
        front = -(-self._sampled // 64) * 64
        self._front = front
        memory = torch.zeros(front + total, dtype=torch.int32, device=device)
        self.tokens = memory[: self._sampled]
        self._packed = memory[front:]
        self._table_of_ids = memory[: front + offsets[_GIVEN_IDS].stop]
        self._given_at = front + offsets[_GIVEN_IDS].start
        self.tensors = {name: self._packed[place] for name, place in offsets.items()}
        self.tensors[INPUT_IDS] = torch.zeros(rows, dtype=torch.int32, device=device)
        self.tensors[BLOCK_TABLE] = torch.full(
            (batch, max_blocks_per_seq), -1, dtype=torch.int32, device=device
        )
        self._slots = [_Slot(total, offsets) for _ in range(_SLOTS)]
        self._table = torch.full((batch, max_blocks_per_seq), -1, dtype=torch.int32).pin_memory()
        self._table_host = self._table.numpy()
        self._table_copied = torch.cuda.Event()
        self._turn = 0

    def upload(self, step: Step, shape: ForwardShape, stream: torch.cuda.Stream) -> None:
        """Enqueue the copies of ``step``, padded to ``shape``, on ``stream``."""
        slot = self._slots[self._turn % _SLOTS]
        self._turn += 1
        slot.copied.synchronize()
        count, batch, wanted = step.num_tokens, step.batch_size, len(step.logit_rows)
        ids = step.input_ids
        slot.put(_GIVEN_IDS, ids, shape.rows)
        given = self._given_at + np.arange(count, dtype=np.int32)
        slot.put(_SOURCES, np.where(ids < 0, -1 - ids, given), shape.rows)
        slot.put(POSITION_IDS, step.position_ids, shape.rows)
        slot.put(CU_QUERY_LENS, step.cu_query_lens, shape.batch + 1, pad=count)
        slot.put(KV_LENS, step.kv_lens, shape.batch)
        slot.put(LOGIT_ROWS, step.logit_rows, max(shape.logit_rows, wanted))
        with torch.cuda.stream(stream):
            self._packed.copy_(slot.memory, non_blocking=True)
            slot.copied.record(stream)
            self._upload_table(step.block_table, batch, stream)

    def gather_ids(self, rows: int) -> None:
        """Enqueue the gather of the forward's token ids on the current stream."""
        sources = self.tensors[_SOURCES][:rows]
        torch.index_select(self._table_of_ids, 0, sources, out=self.tensors[INPUT_IDS][:rows])

    def _upload_table(self, table: np.ndarray, batch: int, stream: torch.cuda.Stream) -> None:
        """Entries behind a sequence's blocks keep what they held; nothing reads them."""
        front = self._table_host[:batch, : table.shape[1]]
        if np.array_equal(front, table):
            return
        self._table_copied.synchronize()
        front[:] = table
        # Whole rows: a copy of their fronts alone would be a strided one.
        self.tensors[BLOCK_TABLE][:batch].copy_(self._table[:batch], non_blocking=True)
        self._table_copied.record(stream)


class _Slot:
    """Pinned memory for one forward's arrays, and when its copy has read them."""

    def __init__(self, size: int, offsets: dict[str, slice]) -> None:
        self.memory = torch.zeros(size, dtype=torch.int32).pin_memory()
        self.copied = torch.cuda.Event()
        host = self.memory.numpy()
        self._arrays = {name: host[place] for name, place in offsets.items()}

    def put(self, name: str, values: np.ndarray, padded: int, pad: int = 0) -> None:
        array = self._arrays[name]
        array[: len(values)] = values
        array[len(values) : padded] = pad
