"""What a request returns, with the names of TensorRT-LLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from trt_resa.runtime.stats import SequenceStats


@dataclass
class CompletionOutput:
    """One completion. In a streamed output the ``_diff`` fields hold what is new since the last.

    ``finish_reason``: "stop" (end-of-sequence, stop token or stop string), "length", or None while
    running. ``stop_reason``: the stop string or token id that ended it. ``logprobs``: per token,
    the log probabilities of the chosen and the likeliest tokens by id. ``stats``: what it cost.
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


@dataclass
class RequestOutput:
    """A prompt and its completions. ``prompt`` is None when token ids were given."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
