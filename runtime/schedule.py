"""Which forward comes next: a pure state machine, without tensors or devices.

``Window`` is the state of one sequence (tokens, dense-exact positions, what is cached);
``next_forward`` packs the actions of a batch into one forward. Neither decision looks at a token's
value, and a sequence's own actions never depend on its neighbours: a batch changes when a step
runs, not what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from trt_resa.config import RectifyMode
from trt_resa.contract import Phase
from trt_resa.runtime.acceptance import Acceptance


class Rows(Enum):
    """Which rows of an action want logits."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class Action:
    """Input tokens [start, stop) of one sequence; afterwards ``stop`` tokens are cached.

    ``prefill``: the action can be cut into chunks. ``replay``: a sparse step of which the next
    token is known already; it is taken for its K/V, and its logits are dropped. ``sampled``:
    positions of a rectification, ascending, whose logits are wanted besides those of ``logits``.
    """

    phase: Phase
    start: int
    stop: int
    logits: Rows
    prefill: bool = False
    replay: bool = False
    sampled: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def logit_rows(self) -> Sequence[int]:
        """Rows whose logits the action gets, in this order, counted from its first."""
        if self.logits is Rows.ALL:
            return range(self.num_rows)
        last = (self.num_rows - 1,) if self.logits is Rows.LAST else ()
        return (*self.sampled_rows, *last)

    @property
    def num_logits(self) -> int:
        return len(self.logit_rows)

    @property
    def sampled_rows(self) -> tuple[int, ...]:
        return tuple(position - self.start for position in self.sampled)

    @property
    def ends_prompt(self) -> bool:
        return self.prefill and self.logits is Rows.LAST

    def first_rows(self, limit: int) -> Action:
        """The part of a prefill that fits ``limit`` rows; only its true end wants logits."""
        if self.num_rows <= limit:
            return self
        return Action(self.phase, self.start, self.start + limit, Rows.NONE, prefill=True)


@dataclass
class Window:
    """Tokens 0..length-1 of one sequence; the newest has no K/V. Positions < exact are dense-exact.

    The prompt is a prefill until ``exact`` reaches ``prompt_length``. ``interval`` is the window's
    largest size (rectify_interval); with ``acceptance``, in mode verify, its size follows from what
    verifications accepted. ``cached`` positions are in the cache: fewer than the window needs only
    after ``restart``, and then the next actions write the same K/V again, dense passes up to
    ``exact`` and a sparse step for each position behind it.

    A sparse step over at most ``dense_below`` tokens attends to everything: behind a dense-exact
    prefix it is as good as a dense pass, so no window begins there.
    """

    mode: RectifyMode
    interval: int
    prompt_length: int
    length: int
    dense_below: int = 0
    acceptance: Acceptance | None = None
    exact: int = 0
    cached: int = 0

    @property
    def size(self) -> int:
        """Tokens of the present window when it is whole."""
        return self.interval if self.acceptance is None else self.acceptance.window

    @property
    def window_steps(self) -> int:
        """Sparse steps of a whole window; 0 in the modes without windows."""
        match self.mode:
            case "separate":
                return self.size
            case "fused" | "verify":
                return self.size - 1
            case "none" | "dense":
                return 0

    @property
    def reusable(self) -> int:
        """Leading positions that may come from another sequence's dense-exact blocks.

        The last prompt token is computed here: its logits give the first token.
        """
        return self.exact if self.exact >= self.prompt_length else self.prompt_length - 1

    @property
    def dense_exact(self) -> int:
        """Leading positions that are in the cache and dense-exact."""
        return min(self.exact, self.cached)

    @property
    def prefill_left(self) -> int:
        """Rows of prefill that are still to run."""
        return max(0, max(self.exact, self.prompt_length) - self.cached)

    @property
    def replay_left(self) -> int:
        """Sparse steps that are still to be repeated."""
        return max(0, self.length - 1 - max(self.exact, self.cached, self.prompt_length))

    def is_exact(self, action: Action) -> bool:
        """Whether what ``action``, the next one, writes is dense-exact, and its logits with it."""
        return action.phase is Phase.DENSE or (
            action.start == self.exact and action.stop <= self.dense_below
        )

    def restart(self, cached: int) -> None:
        """The sequence gets another cache, whose first ``cached`` <= reusable positions are in."""
        self.cached = cached
        if self.exact < self.prompt_length:
            self.exact = cached

    def next_action(self, draft_ended: bool = False) -> Action:
        """What this sequence needs next.

        ``draft_ended``: in mode verify, the newest draft would end the sequence, so it is verified
        now instead of drafting further.
        """
        if self.exact < self.prompt_length:
            return Action(Phase.DENSE, self.exact, self.prompt_length, Rows.LAST, prefill=True)
        if self.cached < self.exact:
            return Action(Phase.DENSE, self.cached, self.exact, Rows.NONE, prefill=True)
        if self.cached < self.length - 1:
            place = self.cached
            return Action(Phase.SPARSE, place, place + 1, Rows.LAST, replay=True)
        pending = self.length - self.exact
        newest = Action(Phase.SPARSE, self.length - 1, self.length, Rows.LAST)
        if self.mode != "dense" and self.is_exact(newest):
            return newest
        match self.mode:
            case "dense":
                rectify, stop, rows = True, self.length, Rows.LAST
            case "none":
                rectify, stop, rows = False, self.length, Rows.LAST
            case "fused":
                rectify, stop, rows = pending >= self.size, self.length, Rows.LAST
            case "separate":
                # The newest token has no K/V yet and is not part of the window.
                rectify, stop, rows = pending > self.size, self.length - 1, Rows.NONE
            case "verify":
                rectify, stop, rows = pending >= self.size or draft_ended, self.length, Rows.ALL
        if rectify:
            return Action(Phase.DENSE, self.exact, stop, rows)
        return newest

    def advance(self, action: Action, accepted: int = 0) -> None:
        """Account for a finished action.

        ``accepted``: drafts that a verification (``Rows.ALL``) accepted, at most num_rows - 1; the
        rest are dropped and the token after the last accepted one is new.
        """
        if action.logits is Rows.ALL:
            self.exact = self.cached = action.start + accepted + 1
            self.length = self.exact + 1
            if self.acceptance is not None:
                self.acceptance.count(action.num_rows - 1, accepted)
            return
        self.cached = action.stop
        if self.is_exact(action):
            self.exact = max(self.exact, action.stop)
        if action.logits is Rows.LAST and not action.replay:
            self.length += 1

    def take_back(self, action: Action) -> None:
        """Undo ``advance`` of the last action, a sparse step whose token became a draft."""
        self.length, self.cached = action.stop, action.start


K = TypeVar("K")


@dataclass(frozen=True)
class Forward(Generic[K]):
    """One forward: its phase, and the action of every sequence that takes part, in order."""

    phase: Phase
    actions: tuple[tuple[K, Action], ...]


@dataclass(frozen=True)
class ForwardLimits:
    """What one forward may carry: rows, logit rows, rows of rectification.

    ``rectify_rows`` bounds the dense passes of decoding sequences. Sequences whose windows end
    together are thereby spread over several forwards, once; from then on their windows are
    staggered. While a prompt is read they are not: whoever waited would wait for one more chunk of
    it, and a window costs little beside a chunk. ``mixed_rows``, at least as many, is all that a
    dense forward carries while anyone decodes. Sparse steps and dense forwards alternate, so it
    bounds the pause between two of them. Rows of a prompt take longer the more context they see,
    twice as long at ``attention_context`` tokens; so that the pause stays as short, forwards that
    read a prompt from there on carry fewer.
    """

    num_tokens: int
    logit_rows: int
    rectify_rows: int
    mixed_rows: int
    attention_context: int

    def prompt_rows(self, start: int) -> int:
        """Rows of a forward that reads a prompt from ``start`` on while anyone decodes.

        Half of ``mixed_rows`` from ``attention_context`` on and a quarter from twice that on; fewer
        would mostly wait for the weights and the context to be read once more.
        """
        halvings = min(2, (start // self.attention_context).bit_length())
        return max(self.rectify_rows, self.mixed_rows >> halvings)


def next_forward(
    wanted: Sequence[tuple[K, Action]],
    limits: ForwardLimits,
    previous: Phase,
    prefill_first: bool = False,
) -> Forward[K]:
    """Pack the wanted actions of the running sequences, given in the order to serve them.

    Sparse steps and dense passes alternate while both are wanted, so neither starves. A dense
    forward takes decoding sequences first, then prefill chunks with the rows that are left;
    ``prefill_first``, for when nothing was left the last time, takes the prefill before them.
    """
    sparse = [(key, action) for key, action in wanted if action.phase is Phase.SPARSE]
    dense = [(key, action) for key, action in wanted if action.phase is Phase.DENSE]
    if sparse and (not dense or previous is Phase.DENSE):
        return Forward(Phase.SPARSE, tuple(sparse))
    decoding = any(not action.prefill for _, action in wanted)
    most = limits.mixed_rows if decoding else limits.num_tokens
    reading = any(action.prefill for _, action in dense)
    rows, rectify_rows = 0, most if reading else limits.rectify_rows
    logit_rows = limits.logit_rows
    taken: list[tuple[K, Action]] = []
    for key, action in sorted(dense, key=lambda item: item[1].prefill is not prefill_first):
        bound = min(most, limits.prompt_rows(action.start)) if action.prefill and decoding else most
        room = bound - rows if action.prefill else min(bound - rows, rectify_rows)
        part = action.first_rows(room) if action.prefill else action
        if 0 < part.num_rows <= room and part.num_logits <= logit_rows:
            taken.append((key, part))
            most, rows = bound, rows + part.num_rows
            rectify_rows -= 0 if part.prefill else part.num_rows
            logit_rows -= part.num_logits
    return Forward(Phase.DENSE, tuple(taken))
