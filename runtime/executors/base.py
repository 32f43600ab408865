"""What the session asks of an executor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from trt_resa.contract import Int32Array, Step
from trt_resa.model_config import ModelConfig

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Limits:
    """Sizes that the session plans with; never above those of the engine."""

    max_batch_size: int
    max_seq_len: int
    max_input_len: int
    max_num_tokens: int
    max_logit_rows: int


class Fetched(Protocol[T_co]):
    """A result of a forward on its way to the host."""

    def get(self) -> T_co:
        """The result; waits for the forward."""
        ...


class SubmittedForward(Protocol):
    """A forward under way.

    Its results are asked for before the next forward is submitted, and read at any time.
    """

    def tokens(self) -> Fetched[Int32Array]:
        """The likeliest token of each logit row, [R]; of equal logits the lowest id."""
        ...

    def logits(self, rows: Sequence[int] | None = None) -> Fetched[torch.Tensor]:
        """Float32 logits [len(rows), vocab] of these logit rows; None: of all."""
        ...

    def drop(self, sequences: Collection[int]) -> None:
        """Of these sequences of the batch, nobody reads the results or what the cache gets.

        They need not be computed; their tokens and logits are anything.
        """
        ...


class Executor(Protocol):
    """Runs forwards over a paged cache that it owns, in the order in which they are submitted."""

    model: ModelConfig
    num_blocks: int
    #: Whether every sparse step follows the executor's own selection, not that of its ``Step``.
    fixed_selection: bool

    def submit(self, step: Step) -> SubmittedForward:
        """Begin a forward: append K/V, attend, choose the likeliest tokens.

        A negative token id -1 - j stands for the token that the forward submitted before chose for
        its logit row j, so that the next forward can be submitted before that token is read.
        """
        ...

    def forward(self, step: Step) -> torch.Tensor:
        """Submit a forward and wait: float32 logits [R, vocab] on the host."""
        ...
