"""Measures a choice of settings on sample prompts, for ``search``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trt_resa.config import SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.runtime.quality.drift import DriftMeter, TokenDrift
from trt_resa.runtime.quality.forcing import ForcedText, ForcingLLM
from trt_resa.runtime.quality.results import step_seconds
from trt_resa.runtime.quality.search import Choice, Grid, Measured
from trt_resa.sampling_params import SamplingParams
from trt_resa.validation import replace

KEEP_RATIOS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
INTERVALS = (16, 32, 64)


class Samples:
    """Prompts with the dense model's answers of ``max_tokens`` tokens, along which all is measured.

    ``base``: the settings that are not searched for.
    """

    def __init__(
        self,
        llm: ForcingLLM,
        base: SparseAttentionConfig,
        prompts: Sequence[list[int]],
        max_tokens: int,
    ) -> None:
        longest = max(map(len, prompts)) + max_tokens
        if longest > llm.limits.max_seq_len:
            raise ConfigError(
                f"a prompt with {max_tokens} new tokens takes {longest} and the engine's "
                f"max_seq_len is {llm.limits.max_seq_len}; lower --max_tokens or shorten the prompt"
            )
        self._llm, self._base, self._prompts = llm, base, prompts
        self._params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        dense = llm.generate(prompts, self._params, rectify_mode="dense")
        texts = [
            ForcedText([*prompt, *answer.outputs[0].token_ids], len(prompt))
            for prompt, answer in zip(prompts, dense, strict=True)
        ]
        self.lengths = sorted({len(text.tokens) for text in texts})
        self._meter = DriftMeter(llm, texts)

    def settings(self, choice: Choice) -> SparseAttentionConfig:
        return replace(self._base, dataclasses.asdict(choice), "settings to try")

    def measure(self, choice: Choice) -> Measured:
        """Agreement along the dense answers, and time per token of one sequence at a time."""
        return self._measured(self.settings(choice))

    def dense(self) -> Measured:
        """The same of dense decoding."""
        return self._measured(replace(self._base, {"rectify_mode": "dense"}, "mode dense"))

    def grid(self, fixed: dict[str, float]) -> Grid:
        """What to choose from; ``fixed`` settings keep their value."""
        interval = self._base.rectify_interval
        intervals = {i for i in INTERVALS if i <= self._llm.max_interval} | {interval}
        # Below its length a sequence is dense, so the longest would leave nothing to tune.
        third = len(self.lengths) / 3
        below = {self.lengths[int(third)], self.lengths[int(2 * third)], self._base.dense_below}
        below = {0} | {length for length in below if length < self.lengths[-1]}
        return Grid(
            keep_ratios=(self._base.keep_ratio,) if "keep_ratio" in fixed else KEEP_RATIOS,
            intervals=(interval,) if "rectify_interval" in fixed else sorted(intervals),
            dense_below=(self._base.dense_below,) if "dense_below" in fixed else sorted(below),
            interval=interval,
        )

    def _measured(self, settings: SparseAttentionConfig) -> Measured:
        drift = TokenDrift.joined(self._meter.measure(settings))
        # A window first, untimed: a GPU captures its graphs there.
        window = SamplingParams(max_tokens=settings.rectify_interval + 2, ignore_eos=True)
        self._llm.generate(self._prompts[0], window, sparse_attention_config=settings)
        before = step_seconds(self._llm.metrics())
        for prompt in self._prompts:
            self._llm.generate(prompt, self._params, sparse_attention_config=settings)
        seconds = step_seconds(self._llm.metrics()) - before
        tokens = len(self._prompts) * self._params.max_tokens
        return Measured(drift.agreement, 1e3 * seconds / tokens)
