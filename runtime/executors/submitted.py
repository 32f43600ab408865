"""A forward under way on a GPU, and its tokens on their way to the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trt_resa.contract import Int32Array


class Submitted:
    """A forward under way. Its results are read before the next forward is submitted, or, for
    tokens that ``tokens`` has asked for, at any time.

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

    def logits(self) -> torch.Tensor:
        """Float32 [R, vocab] on the host; waits for the forward."""
        self._check()
        with torch.cuda.stream(self._stream):
            return self._logits.cpu()

    def tokens(self) -> FetchedTokens:
        """Enqueue the copy of the sampled tokens to the host."""
        self._check()
        return FetchedTokens(self._tokens, self._stream)

    def _check(self) -> None:
        if not self._is_last():
            raise RuntimeError("results of a forward are asked for before the next one only")


class FetchedTokens:
    """Sampled tokens int32 [R] on their way to the host."""

    def __init__(self, tokens: torch.Tensor, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self._host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._host.copy_(tokens, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(stream)

    def ready(self) -> bool:
        return self._done.query()

    def get(self) -> Int32Array:
        """Waits for the forward."""
        self._done.synchronize()
        return np.array(self._host.numpy())
