"""One sequence's part in a forward that was submitted and is not read yet."""

from __future__ import annotations

from dataclasses import dataclass

from trt_resa.runtime.schedule import Action, Rows


@dataclass(eq=False)
class Turn:
    """What a sequence must know of an action when its results come: by then its window has moved.

    ``row``: the first of its logit rows in the forward. ``drafts``: its token becomes a draft.
    ``drift_rows``: rows that the drift meter takes. ``host_rows``: rows whose logits the host
    needs; both are counted from ``row``. ``foreseen``: the sequence's next action does not depend
    on the results, and takes from them at most a token that the device knows. ``dense_exact``:
    leading positions in the cache that are dense-exact afterwards (before, for a verification).
    ``taken_back``: nobody wants its results.
    """

    action: Action
    row: int
    drafts: bool
    drift_rows: tuple[int, ...]
    host_rows: tuple[int, ...]
    foreseen: bool
    dense_exact: int = 0
    taken_back: bool = False

    @property
    def yields(self) -> bool:
        """Whether the logits of its last row give one token more."""
        return self.action.logits is Rows.LAST and not self.action.replay

    @property
    def token_row(self) -> int:
        """Logit row of the forward that gives the token of an action that yields one."""
        return self.row + self.action.num_logits - 1
