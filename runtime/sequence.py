"""One completion of a request: its tokens, its window, when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from collections.abc import Sequence as SequenceOf

import torch
from tokenizers import Tokenizer

from trt_resa.blocks import attended_blocks, num_blocks
from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import Phase
from trt_resa.runtime.acceptance import Acceptance
from trt_resa.runtime.drift import DriftMeter
from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.prefix_cache import BlockKeys
from trt_resa.runtime.sampling import Draft, Sampler, accepted_drafts, bad_words
from trt_resa.runtime.schedule import Action, Rows, Window
from trt_resa.runtime.text import TextStream
from trt_resa.runtime.turn import Turn
from trt_resa.sampling_params import SamplingParams


class Sequence:
    """Tokens are confirmed (they go to the user) or drafts (mode verify, until a dense pass).

    ``sparse`` is this sequence's own; ``max_tokens`` is its greatest length, prompt included.

    An action has two halves: ``begin`` when its forward was submitted, ``commit`` when its results
    are there. The window moves in the first, all else in the second, so between them the window is
    ahead of the tokens: by one, whose value only the device knows, or by nothing before a
    verification, which says itself how far the window moves.
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
        #: The last turn begun, if it yields a token and that has not been read yet.
        self._unread: Turn | None = None
        #: Leading confirmed tokens whose K/V, by the last commit, is cached and dense-exact.
        self.dense_exact = 0
        end_ids = eos_token_ids if params.end_id is None else (params.end_id,)
        self._end_ids = frozenset(() if params.ignore_eos else end_ids)
        self._stop_ids = frozenset(params.stop_token_ids)

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    @property
    def selection(self) -> Hashable:
        return self.sparse.selection

    def block_key(self, index: int) -> bytes:
        """Key of a full block of confirmed tokens."""
        return self._keys.key(index, self._tokens)

    def next_action(self) -> Action | None:
        """What it needs next; None: nothing, the token under way is its last."""
        full = self.window.length >= self.max_tokens
        if full and self._unread is not None and not self._unread.drafts:
            return None
        last_ends = bool(self._drafts) and self._ends(self._drafts[-1].token)
        action = self.window.next_action(draft_ended=full or last_ends)
        if action.phase is Phase.DENSE and not action.prefill and self._drift.positions:
            return dataclasses.replace(action, sampled=self._drift.positions)
        return action

    def inputs(self, action: Action) -> list[int]:
        """Token ids of the action's rows; -1 - j for what logit row j of the forward before gives.

        Only the newest token can be one that has not been read.
        """
        rows = self._tokens[action.start : action.stop]
        first = max(0, action.start - len(self._tokens))
        last = max(0, action.stop - len(self._tokens))
        rows += [draft.token for draft in self._drafts[first:last]]
        if len(rows) < action.num_rows:
            assert self._unread is not None
            rows.append(-1 - self._unread.token_row)
        return rows

    def begin(self, action: Action, row: int) -> Turn:
        """``action`` was submitted; its logit rows are those from ``row`` on of its forward."""
        exact = self.window.is_exact(action)
        silent = action.replay or action.logits is Rows.NONE
        on_device = silent or self._device_chooses
        drift_rows = self._sample_drift(action, exact)
        turn = Turn(
            action,
            row,
            drafts=self.sparse.rectify_mode == "verify" and not exact,
            drift_rows=drift_rows,
            host_rows=drift_rows if on_device else tuple(range(action.num_logits)),
            foreseen=on_device and action.logits is not Rows.ALL,
        )
        if action.logits is not Rows.ALL:
            self.window.advance(action)
        turn.dense_exact = self.window.dense_exact
        if turn.yields:
            self._unread = turn
        return turn

    def commit(
        self, turn: Turn, tokens: SequenceOf[int], logits: Mapping[int, torch.Tensor]
    ) -> bool:
        """Take what an action gave, unless the sequence has no use for it any more: then False.

        ``tokens``: the likeliest of each of its logit rows, where the device is to choose;
        ``logits`` [vocab] of its ``host_rows``, by row.
        """
        if self._unread is turn:
            self._unread = None
        if self.finished or turn.taken_back:
            return False
        if not (turn.action.prefill or turn.action.replay):
            self._count(turn.action)
            self._measure(turn, logits)
        if turn.action.logits is Rows.ALL:
            self.window.advance(turn.action, self._verify(tokens, logits))
            turn.dense_exact = self.window.dense_exact
        elif turn.yields:
            self._take(turn, tokens, logits)
        self.dense_exact = min(turn.dense_exact, len(self._tokens))
        return True

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

    @property
    def _device_chooses(self) -> bool:
        """Whether its tokens are the likeliest ones, of which the host needs no logits."""
        return self._sampler.likeliest and self.output.logprobs is None

    def _count(self, action: Action) -> None:
        cached = num_blocks(action.stop, self.sparse.block_size)
        self.output.stats.count(action, attended_blocks(action.stop, self.sparse), cached)

    def _take(
        self, turn: Turn, tokens: SequenceOf[int], logits: Mapping[int, torch.Tensor]
    ) -> None:
        """The token of the last row, as a draft or for the user."""
        last = turn.action.num_logits - 1
        if self._device_chooses:
            draft = Draft(tokens[last], None)
        else:
            output = self.output.token_ids
            # A copy of the output only where there are drafts to add: it may be long.
            context = output + [d.token for d in self._drafts] if self._drafts else output
            draft = self._sampler.draw(logits[last], context)
        if not turn.drafts:
            self._confirm(draft.token, logits.get(last))
            return
        self._drafts.append(draft)
        ahead = self._unread
        if ahead is not None and self._ends(draft.token):
            # It is verified now: the step that drafts further has been submitted in vain.
            ahead.taken_back = True
            self._unread = None
            self.window.take_back(ahead.action)
            self._drift.take_back(ahead.action.start)

    def _verify(self, tokens: SequenceOf[int], logits: Mapping[int, torch.Tensor]) -> int:
        """Confirm the drafts that a dense pass accepts, and a token more; how many are accepted."""
        drafts, self._drafts = self._drafts, []
        if self._device_chooses:
            accepted = accepted_drafts(drafts, tokens)
            token = tokens[accepted]
        else:
            rows = [logits[row] for row in range(len(drafts) + 1)]
            accepted, token = self._sampler.verify(drafts, rows, self.output.token_ids)
        self.output.stats.drafts += len(drafts)
        self.output.stats.drafts_accepted += accepted
        self.output.stats.verifications += 1
        for row, new in enumerate([*(draft.token for draft in drafts[:accepted]), token]):
            if not self.finished:
                self._confirm(new, logits.get(row))
        return accepted

    def _sample_drift(self, action: Action, exact: bool) -> tuple[int, ...]:
        """Rows of an action that begins whose logits the drift meter takes."""
        if action.sampled:
            self._drift.end_window()
            return tuple(action.logit_rows.index(row) for row in action.sampled_rows)
        if exact or action.replay:
            return ()
        window = self.window
        wanted = self._drift.wants(action.start, window.exact, window.window_steps)
        return (action.num_logits - 1,) if wanted else ()

    def _measure(self, turn: Turn, logits: Mapping[int, torch.Tensor]) -> None:
        rows = [logits[row] for row in turn.drift_rows]
        if turn.action.sampled:
            dense = dict(zip(turn.action.sampled, rows, strict=True))
            self._drift.compare(dense, self.output.stats)
        elif rows:
            self._drift.keep(turn.action.start, rows[0])

    def _ends(self, token: int) -> bool:
        return token in self._end_ids or token in self._stop_ids

    def _confirm(self, token: int, logits: torch.Tensor | None) -> None:
        """``logits`` [vocab] are there where log probabilities are wanted."""
        output = self.output
        if output.token_ids:
            cached = len(self._tokens)
            output.stats.blocks_dense += num_blocks(cached, self.sparse.block_size)
        self._tokens.append(token)
        output.token_ids.append(token)
        output.token_ids_diff.append(token)
        if output.logprobs is not None:
            assert logits is not None
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
