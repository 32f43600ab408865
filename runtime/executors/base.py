"""What the session asks of an executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from trt_resa.contract import Step
from trt_resa.model_config import ModelConfig


@dataclass(frozen=True)
class Limits:
    """Sizes that the session plans with; never above those of the engine."""

    max_batch_size: int
    max_seq_len: int
    max_input_len: int
    max_num_tokens: int
    max_logit_rows: int


class Executor(Protocol):
    """Runs forwards over a paged cache that it owns."""

    model: ModelConfig
    num_blocks: int
    #: Whether every sparse step follows the executor's own selection, not that of its ``Step``.
    fixed_selection: bool

    def forward(self, step: Step) -> torch.Tensor:
        """Append K/V, attend, and return float32 logits [R, vocab] on the host."""
        ...
