"""Who runs, who waits and who holds which blocks: pure, without tensors or devices.

Sequences run in order of arrival: whoever runs came before whoever waits. One is admitted when the
pool holds its tokens so far and still lets every running one fill another window. When the pool
runs out all the same, the youngest gives its blocks back and waits at the head of the queue; its
``Window`` then writes the same K/V again, so its output does not change. The oldest can always go
on, since a sequence that the pool cannot hold at its longest is never submitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from trt_resa.blocks import num_blocks
from trt_resa.contract import Phase
from trt_resa.runtime.kv_cache import BlockPool, SequenceCache
from trt_resa.runtime.schedule import Action, Forward, ForwardLimits, Window, next_forward


class Schedulable(Protocol):
    """What the scheduler knows of a sequence."""

    window: Window
    #: Tokens at its longest, prompt included.
    max_tokens: int

    @property
    def finished(self) -> bool: ...

    @property
    def selection(self) -> Hashable:
        """Settings of its sparse steps; one forward serves sequences with equal ones."""
        ...

    @property
    def dense_exact(self) -> int:
        """Leading confirmed tokens with dense-exact K/V from forwards that are done."""
        ...

    def next_action(self) -> Action | None:
        """None: nothing before the forward under way is done."""
        ...

    def block_key(self, index: int) -> bytes:
        """Key of a full block of confirmed tokens, as in ``prefix_cache.BlockKeys``."""
        ...


S = TypeVar("S", bound=Schedulable)


@dataclass(eq=False)
class Place(Generic[S]):
    """A running sequence, its cache, and the number of the last forward that it took part in."""

    sequence: S
    cache: SequenceCache
    served: int = 0


class Scheduler(Generic[S]):
    """Decides each forward: ``next``, then ``done`` once its results are there.

    Between the two, ``next`` may be asked for one forward more, ``ahead`` of the results. Windows
    have moved on by then; what else ``done`` does waits for the results.
    """

    def __init__(self, pool: BlockPool, max_batch_size: int, limits: ForwardLimits) -> None:
        self.pool = pool
        self.preemptions = 0
        self.blocks_reused = 0
        self._max_batch_size = max_batch_size
        self._limits = limits
        self._waiting: deque[S] = deque()
        self._running: list[Place[S]] = []
        self._forwards = 0
        self._previous = Phase.SPARSE
        self._prefill_waited = False

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def waiting(self) -> Iterator[S]:
        return iter(self._waiting)

    @property
    def running(self) -> Iterator[S]:
        return (place.sequence for place in self._running)

    def submit(self, sequence: S) -> None:
        """Queue a sequence, which the pool can hold at its longest."""
        self._waiting.append(sequence)

    def next(self, ahead: bool = False) -> Forward[Place[S]] | None:
        """The next forward; the blocks it writes to are there.

        ``ahead``: another is under way. Then None is an answer, when nobody can go on before its
        results, or only with blocks that they may set free. Call only while not idle.
        """
        self._admit()
        while True:
            wanted = self._wanted()
            forward = next_forward(wanted, self._limits, self._previous, self._prefill_waited)
            if ahead and not forward.actions:
                return None
            if self._make_room(forward):
                break
            if ahead:
                return None
            self._preempt_youngest()
        if forward.phase is Phase.DENSE:
            taken = any(action.prefill for _, action in forward.actions)
            self._prefill_waited = not taken and any(action.prefill for _, action in wanted)
        self._previous = forward.phase
        self._forwards += 1
        for place, _ in forward.actions:
            place.served = self._forwards
        # In order of arrival, so that a sequence seldom moves from one row of the batch to another.
        order = {place: number for number, place in enumerate(self._running)}
        actions = sorted(forward.actions, key=lambda item: order[item[0]])
        return Forward(forward.phase, tuple(actions))

    def done(self, forward: Forward[Place[S]]) -> None:
        """Offer new dense-exact blocks for reuse and take back what is not needed any more."""
        for place, _ in forward.actions:
            sequence = place.sequence
            for index in place.cache.unoffered(sequence.dense_exact):
                place.cache.offer(index, sequence.block_key(index))
            place.cache.shrink(sequence.window.length)
        self.drop_finished()

    def drop_finished(self) -> None:
        """Forget sequences that have ended, also from outside, and free their blocks."""
        for place in self._running:
            if place.sequence.finished:
                place.cache.release()
        self._running = [place for place in self._running if not place.sequence.finished]
        if any(sequence.finished for sequence in self._waiting):
            self._waiting = deque(s for s in self._waiting if not s.finished)

    def _wanted(self) -> list[tuple[Place[S], Action]]:
        """Everyone's action in the order to serve them, sparse steps of one selection only.

        Whoever waited longest comes first, so that nobody starves who needs many rows at once; but
        a prefill once begun goes on before a younger one.
        """
        actions = ((place, place.sequence.next_action()) for place in self._running)
        wanted = [(place, action) for place, action in actions if action is not None]
        wanted.sort(key=lambda item: 0 if item[1].prefill else item[0].served)
        selections = (p.sequence.selection for p, action in wanted if action.phase is Phase.SPARSE)
        turn = next(selections, None)
        return [
            (place, action)
            for place, action in wanted
            if action.phase is Phase.DENSE or place.sequence.selection == turn
        ]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            sequence = self._waiting[0]
            window = sequence.window
            full = window.reusable // self.pool.block_size
            shared = self.pool.find(sequence.block_key(index) for index in range(full))
            if not self._has_room(sequence, shared):
                return
            cache = SequenceCache(self.pool, shared)
            cache.grow(window.length)
            window.restart(len(shared) * self.pool.block_size)
            self.blocks_reused += len(shared)
            self._running.append(Place(self._waiting.popleft(), cache, self._forwards))

    def _has_room(self, sequence: S, shared: list[int]) -> bool:
        """Whether everyone can go on for a window after ``sequence`` has caught up."""
        if not self._running:
            return True
        size = self.pool.block_size
        windows = [sequence.window, *(place.sequence.window for place in self._running)]
        prefill = sum(window.prefill_left for window in windows) - len(shared) * size
        rows = self._limits.prompt_rows(max(w.length for w in windows if w.prefill_left))
        meanwhile = -(-prefill // rows)
        meanwhile += max(window.replay_left for window in windows)
        growth = sum(
            place.cache.missing(_after(place.sequence, meanwhile)) for place in self._running
        )
        own = num_blocks(_after(sequence, 0), size) - len(shared)
        return own + growth + self.pool.count_unused(shared) <= self.pool.available

    def _make_room(self, forward: Forward[Place[S]]) -> bool:
        """Take the blocks of ``forward``; False when there are too few."""
        needs = [(place.cache, place.sequence.window.length) for place, _ in forward.actions]
        if sum(cache.missing(length) for cache, length in needs) > self.pool.available:
            return False
        for cache, length in needs:
            cache.grow(length)
        return True

    def _preempt_youngest(self) -> None:
        youngest = self._running.pop()
        youngest.cache.release()
        youngest.sequence.window.restart(0)
        self._waiting.appendleft(youngest.sequence)
        self.preemptions += 1


def _after(sequence: Schedulable, forwards: int) -> int:
    """Tokens of ``sequence``, at most, after so many forwards and another window."""
    window = sequence.window
    return min(sequence.max_tokens, window.length + forwards + window.interval)
