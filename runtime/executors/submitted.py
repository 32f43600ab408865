"""A forward under way on a GPU, and its tokens on their way to the host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from trt_resa.contract import Int32Array


class Submitted:
    """A forward under way. Asking for a result enqueues its copy to the host.

    ``logits`` float32 [R, vocab] and ``tokens`` int32 [R] are the executor's own buffers, which the
    next forward overwrites; ``is_last`` says whether none has been submitted since.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        stream: torch.cuda.Stream,
        is_last: Callable[[], bool],
    ) -> None:
        self._logits, self._tokens = logits, tokens
        self._stream, self._is_last = stream, is_last

    def tokens(self) -> FetchedTokens:
        """The likeliest token of each logit row, int32 [R]."""
        self._check()
        return FetchedTokens([self._tokens], self._stream)

    def logits(self, rows: Sequence[int] | None = None) -> FetchedLogits:
        """Float32 [len(rows), vocab]; None: all rows."""
        self._check()
        # Row by row: to gather them, PyTorch would wait for the stream.
        parts = [self._logits] if rows is None else [self._logits[r : r + 1] for r in rows]
        return FetchedLogits(parts, self._stream)

    def drop(self, sequences: Collection[int]) -> None:
        """They are computed all the same: the forward is on the GPU's stream already."""

    def _check(self) -> None:
        if not self._is_last():
            raise RuntimeError("results of a forward are asked for before the next one only")


class _Fetched:
    """Rows of a device buffer, in one pinned tensor on the host once ``_done`` has come."""

    def __init__(self, parts: Sequence[torch.Tensor], stream: torch.cuda.Stream) -> None:
        first = parts[0]
        rows = sum(len(part) for part in parts)
        with torch.cuda.stream(stream):
            self._host = torch.empty((rows, *first.shape[1:]), dtype=first.dtype, pin_memory=True)
            begin = 0
            for part in parts:
                self._host[begin : begin + len(part)].copy_(part, non_blocking=True)
                begin += len(part)
            self._done = torch.cuda.Event()
            self._done.record(stream)

    def ready(self) -> bool:
        return self._done.query()


class FetchedTokens(_Fetched):
    """Sampled tokens int32 [R] on their way to the host."""

    def get(self) -> Int32Array:
        """Waits for the forward."""
        self._done.synchronize()
        return np.array(self._host.numpy())


class FetchedLogits(_Fetched):
    """Float32 logits [R, vocab] on their way to the host."""

    def get(self) -> torch.Tensor:
        """Waits for the forward."""
        self._done.synchronize()
        return self._host
