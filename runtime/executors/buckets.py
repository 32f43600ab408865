"""Which padded shape a forward runs in; pure arithmetic, without tensors or devices.

A graph is captured for one shape, and TensorRT compiles its kernels for one number of rows. So
every forward is padded up to a bucket: sizes are powers of two, or the largest one allowed. Padding
rows belong to no sequence and padding sequences have no tokens; the kernels pass over both.
"""

from __future__ import annotations

from dataclasses import dataclass

from trt_resa.contract import Phase, Step
from trt_resa.errors import RequestError
from trt_resa.runtime.executors.base import Limits


@dataclass(frozen=True)
class ForwardShape:
    """Extents of a padded forward: T rows, B sequences, R logit rows (0: nobody wants logits)."""

    phase: Phase
    rows: int
    batch: int
    logit_rows: int


def bucket(size: int, most: int) -> int:
    """The smallest power of two that is at least ``size``, and never more than ``most``."""
    if not 0 < size <= most:
        raise ValueError(f"{size} is not from 1 to {most}")
    return min(1 << (size - 1).bit_length(), most)


def bucket_sizes(most: int) -> tuple[int, ...]:
    """All buckets up to ``most``, ascending."""
    return tuple(sorted({bucket(size, most) for size in range(1, most + 1)}))


@dataclass(frozen=True)
class Buckets:
    """The shapes of an executor with these ``limits``.

    ``few_rows``: the most rows of the engines' first optimisation profile, which serves sparse
    steps, windows and dense decoding. A forward of more is a chunk. Chunks have as many logit rows
    as fit, or none: what more of them cost is nothing beside its rows, and so their shapes, with a
    graph each, are few.
    """

    limits: Limits
    few_rows: int

    def shape_of(self, step: Step) -> ForwardShape:
        """Raises RequestError when the step is larger than the limits."""
        limits = self.limits
        sizes = (
            ("rows", step.num_tokens, limits.max_num_tokens),
            ("sequences", step.batch_size, limits.max_batch_size),
            ("logit rows", len(step.logit_rows), limits.max_logit_rows),
        )
        for what, size, most in sizes:
            if size > most or (size == 0 and what != "logit rows"):
                raise RequestError(f"a forward of {size} {what} was asked for; 1 to {most} fit")
        batch = bucket(step.batch_size, limits.max_batch_size)
        if step.phase is Phase.SPARSE:
            rows = batch
        else:
            chunk = self.is_chunk(step.num_tokens)
            rows = bucket(step.num_tokens, limits.max_num_tokens if chunk else self.few_rows)
        logit_rows = len(step.logit_rows)
        if logit_rows:
            most = limits.max_logit_rows
            logit_rows = most if self.is_chunk(rows) else bucket(logit_rows, most)
        return ForwardShape(step.phase, rows, batch, logit_rows)

    def is_chunk(self, rows: int) -> bool:
        return rows > self.few_rows

    def profile(self, rows: int) -> int:
        """Optimisation profile of the engines that serves so many rows."""
        return 1 if self.is_chunk(rows) else 0
