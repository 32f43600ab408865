"""Choosing tokens from logits, and accepting drafts.

One ``Sampler`` per sequence: its random stream is its own, so a sequence's tokens do not depend on
the batch it runs in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from trt_resa.errors import RequestError
from trt_resa.sampling_params import SamplingParams


@dataclass(frozen=True)
class Draft:
    """A token of a sparse step in mode verify, and what it was drawn from.

    ``probabilities`` [vocab]; None when sampling is greedy.
    """

    token: int
    probabilities: torch.Tensor | None


def bad_words(params: SamplingParams, tokenizer: Tokenizer | None) -> list[tuple[int, ...]]:
    """The token sequences that ``bad`` and ``bad_token_ids`` forbid.

    Raises RequestError for strings without a tokenizer.
    """
    words: list[tuple[int, ...]] = [(token,) for token in params.bad_token_ids]
    if params.bad and tokenizer is None:
        raise RequestError(
            "bad strings need a tokenizer, and the engine directory holds none; use bad_token_ids"
        )
    for text in params.bad:
        assert tokenizer is not None
        words += [
            tuple(tokenizer.encode(form, add_special_tokens=False).ids)
            for form in (text, f" {text}")
        ]
    return [word for word in dict.fromkeys(words) if word]


def accepted_drafts(drafts: Sequence[Draft], dense: Sequence[int]) -> int:
    """How many greedy drafts are accepted: those before the first that differs from ``dense``."""
    pairs = enumerate(zip(drafts, dense, strict=False))
    return next((count for count, (draft, token) in pairs if draft.token != token), len(drafts))


class Sampler:
    """Turns logits [vocab] (float32, host) into tokens by the rules of one request.

    ``prompt`` counts for the repetition penalty; the presence and frequency penalties see the
    output alone. ``bad``: token sequences that the output never completes, also where they begin
    in the prompt.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        index: int = 0,
        bad: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self._params = params
        # The repetition penalty alone looks at it; copying a long one takes milliseconds.
        penalized = prompt if params.repetition_penalty != 1.0 else ()
        self._prompt = torch.tensor(penalized, dtype=torch.int64)
        self._random = torch.Generator().manual_seed((params.seed + index) % (1 << 64))
        self._bad = bad
        self._reach = max((len(word) - 1 for word in bad), default=0)
        self._tail = list(prompt[-self._reach :]) if self._reach else []

    @property
    def likeliest(self) -> bool:
        """Whether a token is always the likeliest of the logits as they are.

        The device can choose it then, and the host has no need of the logits.
        """
        params = self._params
        penalized = params.presence_penalty or params.frequency_penalty
        return (
            params.greedy and not penalized and params.repetition_penalty == 1.0 and not self._bad
        )

    def draw(self, logits: torch.Tensor, output: Sequence[int]) -> Draft:
        """The next token after ``output``, the tokens generated so far."""
        adjusted = self._adjusted(logits, output)
        if self._params.greedy:
            return Draft(int(adjusted.argmax()), None)
        probabilities = self._filtered(adjusted)
        return Draft(self._pick(probabilities), probabilities)

    def verify(
        self,
        drafts: Sequence[Draft],
        logits: Sequence[torch.Tensor] | torch.Tensor,
        output: Sequence[int],
    ) -> tuple[int, int]:
        """Check drafts against dense logits [len(drafts) + 1, vocab].

        Row j predicts the token after ``output`` and the first j drafts. Returns how many drafts
        are accepted and the token after them. Greedy: accepted while equal to the dense token.
        Otherwise the acceptance test of speculative sampling (arXiv 2211.17192, algorithm 1), whose
        result is distributed as dense sampling.
        """
        context = list(output)
        for count, draft in enumerate(drafts):
            adjusted = self._adjusted(logits[count], context)
            if draft.probabilities is None:
                dense = int(adjusted.argmax())
                if dense != draft.token:
                    return count, dense
            else:
                target = self._filtered(adjusted)
                ratio = target[draft.token] / draft.probabilities[draft.token]
                if float(torch.rand((), generator=self._random)) >= float(ratio):
                    residual = (target - draft.probabilities).clamp(min=0)
                    return count, self._pick(residual if residual.sum() > 0 else target)
            context.append(draft.token)
        return len(drafts), self.draw(logits[len(drafts)], context).token

    def _pick(self, weights: torch.Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=self._random))

    def _adjusted(self, logits: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        return self._without_bad(self._penalized(logits, output), output)

    def _without_bad(self, logits: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        """The tokens that would complete a bad word get the lowest finite value.

        Finite, so that even a request that forbids every token draws one.
        """
        before = [*self._tail, *output[-self._reach :]] if self._reach else []
        ends = [
            word[-1]
            for word in self._bad
            if len(word) == 1 or tuple(before[1 - len(word) :]) == word[:-1]
        ]
        if not ends:
            return logits
        logits = logits.clone()
        logits[ends] = torch.finfo(logits.dtype).min
        return logits

    def _penalized(self, logits: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        params = self._params
        plain = params.presence_penalty == params.frequency_penalty == 0.0
        if plain and params.repetition_penalty == 1.0:
            return logits
        logits = logits.clone()
        generated = torch.tensor(output, dtype=torch.int64)
        if params.repetition_penalty != 1.0:
            seen = torch.cat((self._prompt, generated)).unique()
            score = logits[seen]
            logits[seen] = torch.where(
                score > 0, score / params.repetition_penalty, score * params.repetition_penalty
            )
        if not plain:
            counts = torch.bincount(generated, minlength=len(logits)).to(logits)
            logits -= params.frequency_penalty * counts
            logits -= params.presence_penalty * (counts > 0)
        return logits

    def _filtered(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities after temperature, then min-p, top-k and top-p, each on what is left."""
        params = self._params
        # The maximum goes first, so that a tiny temperature cannot overflow.
        probabilities = torch.softmax((logits - logits.max()) / params.temperature, dim=-1)
        if params.min_p > 0:
            probabilities = _keep(
                probabilities, probabilities >= params.min_p * probabilities.max()
            )
        if 0 < params.top_k < len(probabilities):
            kept = torch.zeros_like(probabilities, dtype=torch.bool)
            kept[probabilities.topk(params.top_k).indices] = True
            probabilities = _keep(probabilities, kept)
        if params.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            # A token stays when the mass before it is under top_p, so the likeliest always does.
            kept = torch.zeros_like(probabilities, dtype=torch.bool)
            kept[order] = (ordered.cumsum(0) - ordered) < params.top_p
            probabilities = _keep(probabilities, kept)
        return probabilities


def _keep(probabilities: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    masked = torch.where(kept, probabilities, 0)
    return masked / masked.sum()
