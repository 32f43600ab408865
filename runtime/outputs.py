"""What a request returns, with the names of TensorRT-LLM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from trt_resa.runtime.stats import SequenceStats


@dataclass
class CompletionOutput:
    """One completion. In a streamed output the ``_diff`` fields hold what is new since the last.

    ``finish_reason``: "stop" (end-of-sequence, stop token or stop string), "length", "cancelled",
    "timeout", or None while running. ``stop_reason``: the stop string or token id that ended it.
    ``logprobs``: per token, the log probabilities of the chosen and the likeliest tokens by id.
    ``stats``: what it cost.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, float]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    text_diff: str = ""
    token_ids_diff: list[int] = field(default_factory=list)
    stats: SequenceStats = field(default_factory=SequenceStats)

    def after(self, earlier: CompletionOutput) -> CompletionOutput:
        """This output with what is new since before ``earlier``, which nobody has seen."""
        return dataclasses.replace(
            self,
            text_diff=earlier.text_diff + self.text_diff,
            token_ids_diff=earlier.token_ids_diff + self.token_ids_diff,
        )


@dataclass
class RequestOutput:
    """A prompt and its completions. ``prompt`` is None when token ids were given."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool

    def after(self, earlier: RequestOutput) -> RequestOutput:
        """This output with what is new since before ``earlier``, which nobody has seen."""
        pairs = zip(self.outputs, earlier.outputs, strict=True)
        return dataclasses.replace(self, outputs=[new.after(old) for new, old in pairs])
