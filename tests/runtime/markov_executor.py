"""A model whose logits depend on the last token and on the phase alone: exact probabilities."""

from __future__ import annotations

import torch

from tests.builder.networks import tiny_model
from trt_resa.contract import Phase, Step
from trt_resa.runtime.executors.deferred import ForwardQueue


class MarkovExecutor:
    """``dense`` and ``sparse`` [vocab, vocab]: logits of the next token by the last one."""

    model = tiny_model()

    def __init__(self, blocks: int, dense: torch.Tensor, sparse: torch.Tensor) -> None:
        self.num_blocks = blocks
        self._logits = {Phase.DENSE: dense, Phase.SPARSE: sparse}
        self.submit = ForwardQueue(self.forward).submit

    def forward(self, step: Step) -> torch.Tensor:
        return self._logits[step.phase][step.input_ids[step.logit_rows]]
