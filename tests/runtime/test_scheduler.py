"""The scheduler alone, with sequences that are nothing but a window."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from trt_resa.contract import Phase
from trt_resa.runtime.kv_cache import BlockPool
from trt_resa.runtime.prefix_cache import BlockKeys
from trt_resa.runtime.schedule import Action, Forward, ForwardLimits, Window
from trt_resa.runtime.scheduler import Place, Scheduler

BLOCK = 4


class Plain:
    """Token ids are positions plus ``first``; ends at its longest."""

    def __init__(
        self,
        name: str,
        prompt: int,
        new: int,
        mode: str = "fused",
        interval: int = 4,
        first: int = 0,
        selection: Hashable = None,
    ) -> None:
        self.name, self.selection = name, selection
        self.window = Window(mode, interval, prompt, prompt)  # type: ignore[arg-type]
        self.max_tokens = prompt + new
        self._keys, self._first = BlockKeys(BLOCK), first

    @property
    def finished(self) -> bool:
        return self.window.length >= self.max_tokens

    @property
    def dense_exact(self) -> int:
        return self.window.dense_exact

    def next_action(self) -> Action:
        return self.window.next_action()

    def block_key(self, index: int) -> bytes:
        return self._keys.key(index, range(self._first, self._first + (index + 1) * BLOCK))


def scheduler(
    pool: int, batch: int = 8, rows: int = 64, rectify: int = 8, mixed: int = 64
) -> Scheduler[Plain]:
    limits = ForwardLimits(
        num_tokens=rows,
        logit_rows=batch,
        rectify_rows=rectify,
        mixed_rows=mixed,
        attention_context=1000,
    )
    return Scheduler(BlockPool(pool, BLOCK, reuse=True), batch, limits)


def step(scheduler: Scheduler[Plain]) -> Forward[Place[Plain]]:
    forward = scheduler.next()
    assert forward is not None
    for place, action in forward.actions:
        place.sequence.window.advance(action)
    scheduler.done(forward)
    return forward


def names(forward: Forward[Place[Plain]]) -> str:
    return "".join(place.sequence.name for place, _ in forward.actions)


def test_a_prefill_goes_on_where_rectifications_fill_every_dense_forward() -> None:
    """Windows of 2 want 14 rows after every sparse step, and a forward has 8."""
    plan = scheduler(pool=400, rows=8, mixed=8)
    for name in "abcdefg":
        plan.submit(Plain(name, 1, 150, interval=2))
    for _ in range(6):
        step(plan)
    long = Plain("p", 40, 5)
    plan.submit(long)
    served = ""
    while long.window.length == 40:
        served += names(step(plan))
        assert len(served) < 400, "the prefill starves"
    assert all(served.count(name) >= 3 for name in "abcdefg")


def test_a_wide_window_gets_its_turn_among_dense_decoders() -> None:
    """Five of 8 rows go to dense decoding in every forward; the window wants all 8 at once."""
    plan = scheduler(pool=400)
    for name in "abcde":
        plan.submit(Plain(name, 1, 200, mode="dense"))
    wide = Plain("w", 1, 100, interval=8)
    plan.submit(wide)
    for _ in range(100):
        step(plan)
    assert wide.window.exact > 40
    assert wide.window.exact % 8 == 1


def test_one_forward_serves_one_selection_and_each_gets_its_turn() -> None:
    plan = scheduler(pool=400)
    for name, selection in ("ax", "by", "cx"):
        plan.submit(Plain(name, 1, 40, mode="none", selection=selection))
    assert names(step(plan)) == "abc"
    assert [names(step(plan)) for _ in range(4)] == ["ac", "b", "ac", "b"]


def test_the_rows_are_bounded_while_anyone_decodes() -> None:
    plan = scheduler(pool=400, rectify=4, mixed=5)
    plan.submit(Plain("a", 60, 40))
    assert [action.num_rows for _, action in step(plan).actions] == [60]
    plan.submit(Plain("b", 20, 40, first=100))
    step(plan)
    rows = []
    while len(rows) < 6:
        forward = step(plan)
        if forward.phase is Phase.DENSE:
            rows.append(" ".join(f"{p.sequence.name}{a.num_rows}" for p, a in forward.actions))
    # A window takes 4 of the 5 rows, and leaves one for the prompt.
    assert rows == ["b5", "b5", "a4 b1", "b5", "b4", "a4"]


def test_admission_leaves_every_sequence_a_window() -> None:
    """8 tokens and a window of 4 are 3 blocks for each."""
    plan = scheduler(pool=8)
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        plan.submit(Plain(name, 8, 20, first=first))
    assert names(step(plan)) == "ab"
    assert [sequence.name for sequence in plan.waiting] == ["c"]


def test_the_youngest_is_preempted_waits_first_and_catches_up() -> None:
    plan = scheduler(pool=8)
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        plan.submit(Plain(name, 8, 20, mode="none", first=first))
    served, replayed = [], 0
    while not plan.idle:
        order = [s.name for s in plan.running] + [s.name for s in plan.waiting]
        assert order == sorted(order), "someone was overtaken"
        assert all(sequence.window.cached == 0 for sequence in plan.waiting)
        forward = step(plan)
        served.append(names(forward))
        replayed += sum(action.replay for _, action in forward.actions)
    assert plan.preemptions == 1
    # b had to give way after some steps, which it repeats when a has ended.
    alone = served.index("a")
    assert 0 < replayed < 20
    assert set(served[alone : alone + 3]) == {"a"}
    assert plan.pool.available == 8
    # a took 7 blocks in the end, so one of b's prompt was still there.
    assert plan.blocks_reused == 1


@pytest.mark.parametrize("prompt", [8, 9, 11])
def test_the_last_prompt_token_is_always_computed(prompt: int) -> None:
    plan = scheduler(pool=20)
    for _ in range(2):
        plan.submit(Plain("a", prompt, 1))
        ((_, action),) = step(plan).actions
        assert action.stop == prompt
    assert action.start == {8: 4, 9: 8, 11: 8}[prompt]
