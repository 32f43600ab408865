"""A model's logits along a given text, in any mode: what it would have said at each token.

The text takes the path of a generation, windows and dense passes included; only the sampler is
another one, which says what the text says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import Phase
from trt_resa.runtime.llm import LLM
from trt_resa.runtime.request_config import SparseChanges
from trt_resa.runtime.request_handle import RequestHandle
from trt_resa.runtime.sampling import Draft, Sampler
from trt_resa.runtime.schedule import Action
from trt_resa.runtime.sequence import Sequence as TokenSequence
from trt_resa.runtime.turn import Turn
from trt_resa.sampling_params import SamplingParams

#: Takes (index, position, logits [vocab]): the logits that forced token ``index`` was to be chosen
#: from, and how many sparse steps the window had taken by then, 0 for a dense pass. In mode verify
#: an index comes twice, as a draft and from the dense pass that counts.
Observer = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class ForcedText:
    """Tokens of a text, the first ``prompt_length`` of which are read as a prompt."""

    tokens: Sequence[int]
    prompt_length: int

    @property
    def forced(self) -> Sequence[int]:
        return self.tokens[self.prompt_length :]


class ForcingLLM(LLM):
    """An LLM that can also be led along a text."""

    @property
    def max_interval(self) -> int:
        """The largest rectify_interval that a request may have."""
        return self._session.max_interval

    def request_settings(self, changes: SparseChanges | None) -> SparseAttentionConfig:
        """The settings of a request with ``changes``; raises ConfigError or RequestError."""
        return self._sparse(changes, None)

    def force(
        self,
        texts: Sequence[ForcedText],
        observers: Sequence[Observer],
        sparse_attention_config: SparseChanges | None = None,
    ) -> None:
        """Lead each text through the model at the same time, and wait.

        An observer is called once per forced token of its text, in order, by the engine's thread.
        """
        sparse = self.request_settings(sparse_attention_config)
        handles = [
            self._forced(text, observe, sparse)
            for text, observe in zip(texts, observers, strict=True)
        ]
        for handle in handles:
            self._loop.submit(handle)
        for handle in handles:
            handle.result()

    def _forced(
        self, text: ForcedText, observe: Observer, sparse: SparseAttentionConfig
    ) -> RequestHandle:
        prompt = list(text.tokens[: text.prompt_length])
        self._check(prompt, SamplingParams(max_tokens=len(text.forced)))
        request_id = next(self._ids)
        sequence = _ForcedSequence(request_id, text, observe, sparse, self.limits.max_seq_len)
        return RequestHandle(request_id, None, prompt, [sequence], False, self._loop.cancel)


class _ForcedSequence(TokenSequence):
    def __init__(
        self,
        request_id: int,
        text: ForcedText,
        observe: Observer,
        sparse: SparseAttentionConfig,
        max_seq_len: int,
    ) -> None:
        prompt = list(text.tokens[: text.prompt_length])
        params = SamplingParams(max_tokens=len(text.forced), ignore_eos=True)
        super().__init__(request_id, 0, prompt, params, sparse, max_seq_len, (), None)
        self._position = 0
        self._sampler = _ForcedSampler(
            params, text.forced, lambda index, logits: observe(index, self._position, logits)
        )

    def begin(self, action: Action, row: int) -> Turn:
        sparse = action.phase is Phase.SPARSE
        self._position = action.stop - self.window.exact if sparse else 0
        return super().begin(action, row)


class _ForcedSampler(Sampler):
    """Says ``forced``; in mode verify it accepts every draft, since the drafts are the text."""

    def __init__(
        self,
        params: SamplingParams,
        forced: Sequence[int],
        observe: Callable[[int, torch.Tensor], None],
    ) -> None:
        super().__init__(params, ())
        self._forced, self._observe = forced, observe

    @property
    def likeliest(self) -> bool:
        return False

    def draw(self, logits: torch.Tensor, output: Sequence[int]) -> Draft:
        return Draft(self._say(len(output), logits), None)

    def verify(
        self,
        drafts: Sequence[Draft],
        logits: Sequence[torch.Tensor] | torch.Tensor,
        output: Sequence[int],
    ) -> tuple[int, int]:
        said = [self._say(len(output) + row, each) for row, each in enumerate(logits)]
        return len(drafts), said[-1]

    def _say(self, index: int, logits: torch.Tensor) -> int:
        """The last draft may be the text's end: what comes after it is not asked for."""
        if index >= len(self._forced):
            return self._forced[-1]
        self._observe(index, logits)
        return self._forced[index]
