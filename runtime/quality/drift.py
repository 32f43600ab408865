"""How far a mode's predictions are from the dense model's, token by token along a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from trt_resa.runtime.quality.forcing import ForcedText, ForcingLLM, Observer
from trt_resa.runtime.request_config import SparseChanges

Floats = npt.NDArray[np.float64]

#: Pieces that the forced part of a text is cut into to show drift along it.
PIECES = 8


@dataclass(frozen=True)
class TokenDrift:
    """Per forced token: KL from dense to the mode in nats, whether the likeliest token is the
    dense model's, the negative log likelihood of the token, its position in the window (0: from a
    dense pass, k: from the k-th sparse step), and its index in the text's forced part.
    """

    kl: Floats
    agrees: Floats
    nll: Floats
    position: Floats
    index: Floats

    @classmethod
    def empty(cls, length: int) -> TokenDrift:
        """NaN until a token was seen."""
        kl, agrees, nll, position = np.full((4, length), np.nan)
        return cls(kl, agrees, nll, position, np.arange(length, dtype=np.float64))

    @classmethod
    def joined(cls, parts: Sequence[TokenDrift]) -> TokenDrift:
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def agreement(self) -> float:
        """Share of the tokens at which the likeliest one is the dense model's."""
        return float(self.agrees.mean())

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.nll.mean()))

    @property
    def mean_kl(self) -> float:
        return float(self.kl.mean())

    def kl_by_position(self) -> dict[int, float]:
        """Mean KL by position in the window."""
        places = np.unique(self.position).astype(int)
        return {int(place): float(self.kl[self.position == place].mean()) for place in places}

    def kl_by_piece(self) -> list[float]:
        """Mean KL of each eighth of the forced part, in order."""
        ends = np.linspace(0, self.index.max() + 1, PIECES + 1)
        pieces = [(self.index >= a) & (self.index < b) for a, b in pairwise(ends)]
        return [float(self.kl[piece].mean()) for piece in pieces if piece.any()]


class DriftMeter:
    """Dense predictions along ``texts``, and what other settings make of the same texts.

    Holds the dense log probabilities: float32, vocabulary times forced tokens.
    """

    def __init__(self, llm: ForcingLLM, texts: Sequence[ForcedText]) -> None:
        self._llm, self._texts = llm, texts
        vocab = llm.model_config.vocab_size
        self._dense = [torch.empty(len(text.forced), vocab) for text in texts]
        observers = [_keep(store) for store in self._dense]
        llm.force(texts, observers, {"rectify_mode": "dense"})

    def measure(self, settings: SparseChanges) -> list[TokenDrift]:
        """Drift of each text under ``settings``."""
        drifts = [TokenDrift.empty(len(text.forced)) for text in self._texts]
        observers = [
            _compare(dense, text.forced, drift)
            for dense, text, drift in zip(self._dense, self._texts, drifts, strict=True)
        ]
        self._llm.force(self._texts, observers, settings)
        return drifts


def _keep(store: torch.Tensor) -> Observer:
    def observe(index: int, position: int, logits: torch.Tensor) -> None:
        store[index] = torch.log_softmax(logits, dim=-1)

    return observe


def _compare(dense: torch.Tensor, forced: Sequence[int], drift: TokenDrift) -> Observer:
    def observe(index: int, position: int, logits: torch.Tensor) -> None:
        ours, theirs = torch.log_softmax(logits, dim=-1), dense[index]
        # Rounding can make the sum of two equal distributions slightly negative.
        drift.kl[index] = max(0.0, float((theirs.exp() * (theirs - ours)).sum(dtype=torch.float64)))
        drift.agrees[index] = float(ours.argmax() == theirs.argmax())
        drift.nll[index] = -float(ours[forced[index]])
        drift.position[index] = position

    return observe
