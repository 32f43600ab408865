"""How many drafts to take before a verification: few where they are rejected, many where not.

Pure arithmetic on what a sequence's own verifications accepted, never on time or on neighbours: a
window decides which random numbers a sampled token gets, so it must be the same in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What a dense pass costs, in sparse steps: 1.5 to 4 on a GPU at long contexts. Windows chosen for
#: 2.5 do well over that range (benchmarks/results/verify_windows_cpu.txt).
PASS_COST = 2.5
#: A window of one token would be dense decoding, from which nothing is learned.
SMALLEST = 2
#: Weight that earlier counts keep with each verification, and with each draft that it judged: so
#: windows grow again within some 20 small verifications and shrink within a few large ones.
_KEPT, _KEPT_PER_DRAFT = 0.9, 0.99


def best_window(rate: float, most: int) -> int:
    """The window that costs least per token when each draft is accepted with probability ``rate``.

    n tokens take n - 1 drafts and a dense pass, and give 1 + rate + ... + rate**(n - 1) tokens on
    average: the accepted drafts and one more. From SMALLEST (or ``most`` if that is less) to
    ``most``.
    """
    best, least = most, float("inf")
    tokens, accepted = 0.0, 1.0
    for size in range(1, most + 1):
        tokens += accepted
        accepted *= rate
        cost = (size - 1 + PASS_COST) / tokens
        if size >= SMALLEST and cost < least:
            best, least = size, cost
    return best


@dataclass
class Acceptance:
    """Running counts of drafts that verifications accepted and of rejections, and what follows.

    A verification says nothing about the drafts behind the first rejected one. The counts start as
    if 8 of 9 had been accepted.
    """

    most: int
    accepted: float = 8.0
    rejected: float = 1.0

    def __post_init__(self) -> None:
        self._window = self._best()

    @property
    def window(self) -> int:
        """Tokens of the next window, at most ``most``; its last one comes from the dense pass."""
        return self._window

    def count(self, drafts: int, accepted: int) -> None:
        """A verification accepted so many of so many drafts."""
        rejected = int(accepted < drafts)
        kept = _KEPT * _KEPT_PER_DRAFT ** (accepted + rejected)
        self.accepted = kept * self.accepted + accepted
        self.rejected = kept * self.rejected + rejected
        self._window = self._best()

    def _best(self) -> int:
        return best_window(self.accepted / (self.accepted + self.rejected), self.most)
