"""How far sparse steps are from dense, measured on a sample of them at no extra pass.

A dense pass over a window sees the tokens that the window's sparse steps saw. Its logits at a
sampled position are therefore what the sparse step there should have given.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trt_resa.runtime.stats import SequenceStats

#: 2**32 over the golden ratio: its multiples fall evenly between 0 and 2**32.
_GOLDEN = 2654435769


def sampled_steps(window: int, steps: int, count: int) -> tuple[int, ...]:
    """Which of a window's ``steps`` sparse steps are sampled: ``count``, or all if they are fewer.

    One from each of ``count`` equal parts; from ``window`` to ``window`` (0, 1, ...) the place
    within the part changes, so that over time every step is sampled equally often.
    """
    count = min(count, steps)
    place = window * _GOLDEN % (1 << 32)
    sample = []
    for part in range(count):
        start, stop = part * steps // count, (part + 1) * steps // count
        sample.append(start + (place * (stop - start) >> 32))
    return tuple(sample)


class DriftMeter:
    """Keeps logits of one sequence's sampled sparse steps until a dense pass gives its own.

    ``sample``: steps per window; 0 measures nothing. A kept step takes a row of float32 logits on
    the host. Nothing here has an influence on tokens.
    """

    def __init__(self, sample: int) -> None:
        self._sample = sample
        self._positions: list[int] = []
        self._kept: dict[int, torch.Tensor] = {}
        self._windows = 0

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions whose dense logits are wanted from the next dense pass, ascending."""
        return tuple(self._positions)

    def wants(self, position: int, start: int, steps: int) -> bool:
        """Whether a sparse step that begins is sampled; ``keep`` then gets its logits.

        It is in a window of ``steps`` from position ``start``.
        """
        sampled = position - start in sampled_steps(self._windows, steps, self._sample)
        if sampled:
            self._positions.append(position)
        return sampled

    def take_back(self, position: int) -> None:
        """The sparse step that began last, at ``position``, does not count."""
        if position in self._positions:
            self._positions.remove(position)

    def end_window(self) -> None:
        """The dense pass over ``positions`` begins; ``compare`` then gets its logits."""
        self._positions.clear()
        self._windows += 1

    def keep(self, position: int, logits: torch.Tensor) -> None:
        """The logits [vocab] of a sampled step."""
        # A copy: the row is part of a tensor that holds those of the whole batch.
        self._kept[position] = logits.clone()

    def compare(self, dense: Mapping[int, torch.Tensor], stats: SequenceStats) -> None:
        """Count a window in ``stats``; ``dense`` are the pass's logits [vocab] by position."""
        for position, row in dense.items():
            sparse = self._kept.pop(position)
            stats.drift_rows += 1
            stats.drift_agreed += int(row.argmax() == sparse.argmax())
            stats.drift_kl += divergence(row, sparse)


def divergence(dense: torch.Tensor, sparse: torch.Tensor) -> float:
    """KL(dense || sparse) in nats of the distributions that logits [vocab] stand for."""
    log_dense, log_sparse = torch.log_softmax(dense, -1), torch.log_softmax(sparse, -1)
    # Rounding can leave a sum just below zero.
    return max(0.0, float((log_dense.exp() * (log_dense - log_sparse)).sum()))
