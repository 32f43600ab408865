"""From tokens to text, a piece at a time, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Decodes tokens as they come; whole characters only.

    Text that could be the beginning of a stop string is held back until it cannot be one, so a
    streamed piece is never taken back.
    """

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stops = stops
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """New text that may be shown; sets ``stopped_by`` when a stop string is complete."""
        if self._tokenizer is None or self.stopped_by is not None:
            return ""
        self._held += self._decoder.step(self._tokenizer, token) or ""
        found = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(place, stop) for place, stop in found if place >= 0]
        if hits:
            place, self.stopped_by = min(hits)
            shown, self._held = self._held[:place], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
