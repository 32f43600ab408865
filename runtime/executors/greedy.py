"""The likeliest token of each row, on the device."""

from __future__ import annotations

import torch

#: Parts of a row that are searched side by side; PyTorch gives a lone row few thread blocks.
_MOST_PARTS = 128


def greedy_tokens(logits: torch.Tensor) -> torch.Tensor:
    """int64 [R] of logits [R, vocab]; of equal logits the lowest id."""
    rows, vocab = logits.shape
    parts = _MOST_PARTS
    while vocab % parts:
        parts //= 2
    best, place = logits.view(rows, parts, -1).max(dim=-1)
    part = best.argmax(dim=-1, keepdim=True)
    return (part * (vocab // parts) + place.gather(-1, part)).squeeze(-1)
