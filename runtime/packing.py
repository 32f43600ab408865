"""From the actions of a forward to the host arrays of the step contract."""

from __future__ import annotations

import numpy as np

from trt_resa.blocks import num_blocks
from trt_resa.contract import Int32Array, Step
from trt_resa.runtime.schedule import Forward
from trt_resa.runtime.scheduler import Place
from trt_resa.runtime.sequence import Sequence


def pack(forward: Forward[Place[Sequence]], block_size: int) -> Step:
    """The step of ``forward``, whose sequences hold the blocks it writes to."""
    ids: list[int] = []
    positions: list[int] = []
    tables: list[Int32Array] = []
    bounds, kv_lens, logit_rows = [0], list[int](), list[int]()
    for place, action in forward.actions:
        logit_rows += (len(ids) + row for row in action.logit_rows)
        ids += place.sequence.inputs(action)
        positions += range(action.start, action.stop)
        bounds.append(len(ids))
        kv_lens.append(action.stop)
        used = num_blocks(action.stop, block_size)
        tables.append(np.frombuffer(place.cache.blocks, dtype=np.int32, count=used))
    return Step(
        phase=forward.phase,
        input_ids=np.array(ids, dtype=np.int32),
        position_ids=np.array(positions, dtype=np.int32),
        cu_query_lens=np.array(bounds, dtype=np.int32),
        kv_lens=np.array(kv_lens, dtype=np.int32),
        block_table=block_table(tables),
        logit_rows=np.array(logit_rows, dtype=np.int32),
        sparse=forward.actions[0][0].sequence.sparse,
    )


def block_table(tables: list[Int32Array]) -> Int32Array:
    """int32 [B, M] with -1 where a sequence has fewer than M blocks."""
    table = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int32)
    for row, blocks in enumerate(tables):
        table[row, : len(blocks)] = blocks
    return table
