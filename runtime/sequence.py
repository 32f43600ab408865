"""One completion of a request: its tokens, its window, when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import torch
from tokenizers import Tokenizer

from trt_resa.blocks import attended_blocks, num_blocks
from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import Phase
from trt_resa.runtime.acceptance import Acceptance
from trt_resa.runtime.drift import DriftMeter
from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.prefix_cache import BlockKeys
from trt_resa.runtime.sampling import Draft, Sampler, bad_words
from trt_resa.runtime.schedule import Action, Rows, Window
from trt_resa.runtime.text import TextStream
from trt_resa.sampling_params import SamplingParams


class Sequence:
    """Tokens are confirmed (they go to the user) or drafts (mode verify, until a dense pass).

    ``sparse`` is this sequence's own; ``max_tokens`` is its greatest length, prompt included.
    """

    def __init__(
        self,
        request_id: int,
        index: int,
        prompt: list[int],
        params: SamplingParams,
        sparse: SparseAttentionConfig,
        max_seq_len: int,
        eos_token_ids: tuple[int, ...],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.request_id = request_id
        self.max_tokens = min(len(prompt) + params.max_tokens, max_seq_len)
        self.sparse = sparse
        self.output = CompletionOutput(index=index)
        if params.logprobs is not None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0
        self._tokens = list(prompt)
        self._params = params
        self._keys = BlockKeys(sparse.block_size)
        self.window = Window(
            mode=sparse.rectify_mode,
            interval=sparse.rectify_interval,
            prompt_length=len(prompt),
            length=len(prompt),
            dense_below=sparse.dense_below,
            acceptance=_acceptance(sparse),
        )
        self._sampler = Sampler(params, prompt, index, bad_words(params, tokenizer))
        self._text = TextStream(tokenizer, params.stop)
        self._drafts: list[Draft] = []
        self._drift = DriftMeter(sparse.drift_sample)
        end_ids = eos_token_ids if params.end_id is None else (params.end_id,)
        self._end_ids = frozenset(() if params.ignore_eos else end_ids)
        self._stop_ids = frozenset(params.stop_token_ids)

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    @property
    def selection(self) -> Hashable:
        return self.sparse.selection

    @property
    def dense_exact(self) -> int:
        """Leading confirmed tokens whose K/V is in the cache and dense-exact."""
        return min(self.window.exact, self.window.cached, len(self._tokens))

    def block_key(self, index: int) -> bytes:
        """Key of a full block of confirmed tokens."""
        return self._keys.key(index, self._tokens)

    def next_action(self) -> Action:
        draft_ended = bool(self._drafts) and (
            self._ends(self._drafts[-1].token) or self.window.length >= self.max_tokens
        )
        action = self.window.next_action(draft_ended)
        if action.phase is Phase.DENSE and not action.prefill and self._drift.positions:
            return dataclasses.replace(action, sampled=self._drift.positions)
        return action

    def inputs(self, action: Action) -> list[int]:
        """Token ids of the action's rows."""
        rows = self._tokens[action.start : action.stop]
        first = max(0, action.start - len(self._tokens))
        last = max(0, action.stop - len(self._tokens))
        return rows + [draft.token for draft in self._drafts[first:last]]

    def commit(self, action: Action, logits: torch.Tensor) -> None:
        """Take the logits [action.num_logits, vocab] of a finished action."""
        if action.replay:
            self.window.advance(action)
            return
        output = self.output.token_ids
        if not action.prefill:
            self._count(action)
            self._measure(action, logits)
        accepted = 0
        if action.logits is Rows.ALL:
            drafts, self._drafts = self._drafts, []
            accepted, token = self._sampler.verify(drafts, logits, output)
            self.output.stats.drafts += len(drafts)
            self.output.stats.drafts_accepted += accepted
            self.output.stats.verifications += 1
            new = [draft.token for draft in drafts[:accepted]] + [token]
            for row, token in zip(logits, new, strict=False):
                if not self.finished:
                    self._confirm(token, row)
        elif action.logits is Rows.LAST:
            # A copy of the output only where there are drafts to add: it may be long.
            context = output + [d.token for d in self._drafts] if self._drafts else output
            draft = self._sampler.draw(logits[-1], context)
            if self.sparse.rectify_mode == "verify" and not self.window.is_exact(action):
                self._drafts.append(draft)
            else:
                self._confirm(draft.token, logits[-1])
        self.window.advance(action, accepted)

    def take_output(self) -> CompletionOutput:
        """A copy for the user; the ``_diff`` fields start anew after it."""
        taken = dataclasses.replace(
            self.output,
            token_ids=list(self.output.token_ids),
            logprobs=None if self.output.logprobs is None else list(self.output.logprobs),
            stats=dataclasses.replace(self.output.stats),
        )
        self.output.text_diff, self.output.token_ids_diff = "", []
        return taken

    def finish(self, reason: str) -> None:
        self.output.finish_reason = reason
        self._show(self._text.flush())

    def _count(self, action: Action) -> None:
        cached = num_blocks(action.stop, self.sparse.block_size)
        self.output.stats.count(action, attended_blocks(action.stop, self.sparse), cached)

    def _measure(self, action: Action, logits: torch.Tensor) -> None:
        if action.sampled:
            rows = [action.logit_rows.index(row) for row in action.sampled_rows]
            self._drift.compare(logits[rows], self.output.stats)
        elif not self.window.is_exact(action):
            start, steps = self.window.exact, self.window.window_steps
            self._drift.offer(action.start, start, steps, logits[-1])

    def _ends(self, token: int) -> bool:
        return token in self._end_ids or token in self._stop_ids

    def _confirm(self, token: int, logits: torch.Tensor) -> None:
        output = self.output
        if output.token_ids:
            cached = len(self._tokens)
            output.stats.blocks_dense += num_blocks(cached, self.sparse.block_size)
        self._tokens.append(token)
        output.token_ids.append(token)
        output.token_ids_diff.append(token)
        if output.logprobs is not None:
            self._record_logprobs(token, logits)
        if self._ends(token):
            output.stop_reason = token if token in self._stop_ids else None
            self.finish("stop")
            return
        self._show(self._text.push(token))
        if self._text.stopped_by is not None:
            output.stop_reason = self._text.stopped_by
            self.finish("stop")
        elif len(self._tokens) >= self.max_tokens:
            self.finish("length")

    def _show(self, text: str) -> None:
        self.output.text += text
        self.output.text_diff += text

    def _record_logprobs(self, token: int, logits: torch.Tensor) -> None:
        """Log probabilities of the plain logits, before penalties and temperature."""
        assert self.output.logprobs is not None
        assert self.output.cumulative_logprob is not None
        log_probabilities = torch.log_softmax(logits, dim=-1)
        likeliest = log_probabilities.topk(self._params.logprobs or 0)
        entry = {token: float(log_probabilities[token])}
        entry.update(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
        self.output.logprobs.append(entry)
        self.output.cumulative_logprob += entry[token]


def _acceptance(sparse: SparseAttentionConfig) -> Acceptance | None:
    adapts = sparse.rectify_mode == "verify" and sparse.adaptive_window
    return Acceptance(sparse.rectify_interval) if adapts else None
