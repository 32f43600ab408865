"""What a completion cost: forwards, cache blocks read, drafts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from trt_resa.contract import Phase
from trt_resa.runtime.schedule import Action


@dataclass
class SequenceStats:
    """Counts of one completion, prefill apart.

    A block is counted per forward that reads it (for one layer and KV head). ``blocks_cached``
    counts the blocks that existed in the sparse steps, ``blocks_dense`` what dense decoding of the
    same tokens would have read. ``verifications`` dense passes checked ``drafts`` and accepted
    ``drafts_accepted`` of them. ``drift_rows`` sparse steps were compared with a dense pass over
    the same tokens, ``drift_agreed`` of them had the same likeliest token, and ``drift_kl`` is the
    sum of KL(dense || sparse) in nats, all before penalties and temperature.
    """

    sparse_steps: int = 0
    blocks_attended: int = 0
    blocks_cached: int = 0
    dense_passes: int = 0
    dense_rows: int = 0
    blocks_in_dense_passes: int = 0
    blocks_dense: int = 0
    drafts: int = 0
    drafts_accepted: int = 0
    verifications: int = 0
    drift_rows: int = 0
    drift_agreed: int = 0
    drift_kl: float = 0.0

    def count(self, action: Action, attended: int, cached: int) -> None:
        """A finished decode action that could read ``cached`` blocks and attended ``attended``."""
        if action.phase is Phase.SPARSE:
            self.sparse_steps += 1
            self.blocks_attended += attended
            self.blocks_cached += cached
        else:
            self.dense_passes += 1
            self.dense_rows += action.num_rows
            self.blocks_in_dense_passes += cached

    @property
    def attended_share(self) -> float:
        """Share of the cached blocks that the sparse steps attended to; 1 without any."""
        return self.blocks_attended / self.blocks_cached if self.blocks_cached else 1.0

    @property
    def read_share(self) -> float:
        """Blocks read, dense passes included, against dense decoding of the same tokens."""
        read = self.blocks_attended + self.blocks_in_dense_passes
        return read / self.blocks_dense if self.blocks_dense else 1.0


def total(stats: Iterable[SequenceStats]) -> SequenceStats:
    """The sum over completions."""
    result = SequenceStats()
    for item in stats:
        for field in dataclasses.fields(SequenceStats):
            setattr(result, field.name, getattr(result, field.name) + getattr(item, field.name))
    return result
