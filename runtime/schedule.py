"""Which forward comes next: a pure state machine, without tensors or devices.

``Window`` is the state of one sequence (tokens, dense-exact positions); ``next_forward`` packs the
actions of a batch into one forward. Neither decision looks at a token's value, and a sequence's own
actions never depend on its neighbours: a batch changes when a step runs, not what it computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from trt_resa.config import RectifyMode
from trt_resa.contract import Phase


class Rows(Enum):
    """Which rows of an action want logits."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class Action:
    """Input tokens [start, stop) of one sequence; afterwards ``stop`` tokens are cached."""

    phase: Phase
    start: int
    stop: int
    logits: Rows
    prefill: bool = False

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def num_logits(self) -> int:
        return {Rows.NONE: 0, Rows.LAST: 1, Rows.ALL: self.num_rows}[self.logits]

    def first_rows(self, limit: int) -> Action:
        """The part of a prefill that fits ``limit`` rows; only its true end wants logits."""
        if self.num_rows <= limit:
            return self
        return Action(self.phase, self.start, self.start + limit, Rows.NONE, prefill=True)


@dataclass
class Window:
    """Tokens 0..length-1 of one sequence; the newest has no K/V. Positions < exact are dense-exact.

    The prompt is a prefill until ``exact`` reaches ``prompt_length``. ``interval`` is the window's
    largest size (DESIGN: rectify_interval).
    """

    mode: RectifyMode
    interval: int
    prompt_length: int
    length: int
    exact: int = 0

    def next_action(self, draft_ended: bool = False) -> Action:
        """What this sequence needs next.

        ``draft_ended``: in mode verify, the newest draft would end the sequence, so it is verified
        now instead of drafting further.
        """
        if self.exact < self.prompt_length:
            return Action(Phase.DENSE, self.exact, self.prompt_length, Rows.LAST, prefill=True)
        pending = self.length - self.exact
        match self.mode:
            case "dense":
                rectify, stop, rows = True, self.length, Rows.LAST
            case "none":
                rectify, stop, rows = False, self.length, Rows.LAST
            case "fused":
                rectify, stop, rows = pending >= self.interval, self.length, Rows.LAST
            case "separate":
                # The newest token has no K/V yet and is not part of the window.
                rectify, stop, rows = pending > self.interval, self.length - 1, Rows.NONE
            case "verify":
                rectify, stop, rows = pending >= self.interval or draft_ended, self.length, Rows.ALL
        if rectify:
            return Action(Phase.DENSE, self.exact, stop, rows)
        return Action(Phase.SPARSE, self.length - 1, self.length, Rows.LAST)

    def advance(self, action: Action, accepted: int = 0) -> None:
        """Account for a finished action.

        ``accepted``: drafts that a verification (``Rows.ALL``) accepted, at most num_rows - 1; the
        rest are dropped and the token after the last accepted one is new.
        """
        if action.logits is Rows.ALL:
            self.exact = action.start + accepted + 1
            self.length = self.exact + 1
            return
        if action.phase is Phase.DENSE:
            self.exact = action.stop
        if action.logits is Rows.LAST:
            self.length += 1


K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Forward(Generic[K]):
    """One forward: its phase, and the action of every sequence that takes part, in order."""

    phase: Phase
    actions: tuple[tuple[K, Action], ...]


@dataclass(frozen=True)
class ForwardLimits:
    """Rows per forward, logit rows per forward, and rows of rectification per forward.

    ``rectify_rows`` bounds the dense passes of decoding sequences in one forward. Sequences whose
    windows end together are thereby spread over several forwards, once; from then on their windows
    are staggered.
    """

    num_tokens: int
    logit_rows: int
    rectify_rows: int


def next_forward(
    wanted: Sequence[tuple[K, Action]], limits: ForwardLimits, previous: Phase
) -> Forward[K]:
    """Pack the wanted actions of the running sequences, given oldest first.

    Sparse steps and dense passes alternate while both are wanted, so neither starves. A dense
    forward takes decoding sequences first, then prefill chunks with the rows that are left.
    """
    sparse = [(key, action) for key, action in wanted if action.phase is Phase.SPARSE]
    dense = [(key, action) for key, action in wanted if action.phase is Phase.DENSE]
    if sparse and (not dense or previous is Phase.DENSE):
        return Forward(Phase.SPARSE, tuple(sparse))
    taken: list[tuple[K, Action]] = []
    rows, logit_rows, budget = limits.num_tokens, limits.logit_rows, limits.rectify_rows
    for key, action in dense:
        fits = action.num_rows <= min(rows, budget) and action.num_logits <= logit_rows
        if not action.prefill and fits:
            taken.append((key, action))
            rows -= action.num_rows
            budget -= action.num_rows
            logit_rows -= action.num_logits
    for key, action in dense:
        if action.prefill and rows > 0:
            chunk = action.first_rows(rows)
            if chunk.num_logits <= logit_rows:
                taken.append((key, chunk))
                rows -= chunk.num_rows
                logit_rows -= chunk.num_logits
    return Forward(Phase.DENSE, tuple(taken))
