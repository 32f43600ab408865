"""How right an answer is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


def found_share(expected: Sequence[str], text: str) -> float:
    """Share of ``expected`` that stands in ``text``, each as words of its own."""
    hits = [re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text) for each in expected]
    return sum(hit is not None for hit in hits) / len(expected)


@dataclass(frozen=True)
class ChainScore:
    """``first_error``: number, from 1, of the first step that is wrong or missing; None: exact."""

    steps: int
    first_error: int | None

    @property
    def exact(self) -> bool:
        return self.first_error is None

    @property
    def right_share(self) -> float:
        """Share of the steps before the first error."""
        return 1.0 if self.first_error is None else (self.first_error - 1) / self.steps


def score_chain(expected: Sequence[str], text: str) -> ChainScore:
    """``expected`` lines against the lines of ``text``; blank ones and spaces around do not count.

    What follows the last step does not count either.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, want in enumerate(expected, start=1):
        if number > len(lines) or lines[number - 1] != want:
            return ChainScore(len(expected), number)
    return ChainScore(len(expected), None)


def same_tokens(tokens: Sequence[int], dense: Sequence[int]) -> int:
    """How many leading tokens are those of dense."""
    pairs = zip(tokens, dense, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(dense)))
