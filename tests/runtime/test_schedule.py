"""The schedule alone: hand-written traces of each mode, and invariants over random batches."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_resa.contract import Phase
from trt_resa.runtime.schedule import Action, ForwardLimits, Rows, Window, next_forward


def trace(
    mode: str, interval: int, steps: int, accepted: int | None = None, dense_below: int = 0
) -> str:
    """Actions after the prefill: s3 = sparse step on token 3; d3:6 = dense pass, + last, * all."""
    prompt = 5
    window = Window(mode, interval, prompt, prompt, dense_below)  # type: ignore[arg-type]
    prefill = window.next_action()
    assert prefill == Action(Phase.DENSE, 0, prompt, Rows.LAST, prefill=True)
    window.advance(prefill)
    shown = []
    for _ in range(steps):
        action = window.next_action()
        if action.phase is Phase.SPARSE:
            shown.append(f"s{action.start}")
        else:
            mark = {Rows.NONE: "", Rows.LAST: "+", Rows.ALL: "*"}[action.logits]
            shown.append(f"d{action.start}:{action.stop}{mark}")
        drafts = action.num_rows - 1
        window.advance(action, drafts if accepted is None else min(accepted, drafts))
    return " ".join(shown)


def test_traces() -> None:
    assert trace("dense", 3, 3) == "d5:6+ d6:7+ d7:8+"
    assert trace("none", 3, 4) == "s5 s6 s7 s8"
    # f - 1 sparse steps and one dense pass give f tokens.
    assert trace("fused", 3, 6) == "s5 s6 d5:8+ s8 s9 d8:11+"
    assert trace("fused", 1, 3) == "d5:6+ d6:7+ d7:8+"
    # f sparse steps give f tokens; the dense pass over them gives none.
    assert trace("separate", 3, 8) == "s5 s6 s7 d5:8 s8 s9 s10 d8:11"
    assert trace("separate", 1, 4) == "s5 d5:6 s6 d6:7"
    # Two drafts, all accepted: the pass yields them and one more.
    assert trace("verify", 3, 6) == "s5 s6 d5:8* s8 s9 d8:11*"
    # None accepted: only the dense token after the window's first position is new.
    assert trace("verify", 3, 6, accepted=0) == "s5 s6 d5:8* s6 s7 d6:9*"
    assert trace("verify", 3, 6, accepted=1) == "s5 s6 d5:8* s7 s8 d7:10*"


def test_no_window_begins_below_dense_below() -> None:
    """The sparse steps on tokens 5 and 6 attend to everything; the one on token 7 does not."""
    assert trace("fused", 3, 5, dense_below=7) == "s5 s6 s7 s8 d7:10+"
    assert trace("fused", 1, 4, dense_below=7) == "s5 s6 d7:8+ d8:9+"
    assert trace("separate", 3, 6, dense_below=7) == "s5 s6 s7 s8 s9 d7:10"
    assert trace("verify", 3, 6, dense_below=7, accepted=0) == "s5 s6 s7 s8 d7:10* s8"
    assert trace("none", 3, 4, dense_below=7) == "s5 s6 s7 s8"
    assert trace("dense", 3, 3, dense_below=7) == "d5:6+ d6:7+ d7:8+"
    for mode in ("fused", "separate", "verify"):
        assert trace(mode, 3, 6, dense_below=100) == "s5 s6 s7 s8 s9 s10"


def test_steps_below_dense_below_are_not_repeated_after_a_preemption() -> None:
    window = Window("none", 3, 5, 5, dense_below=7)
    for _ in range(4):
        window.advance(window.next_action())
    assert (window.length, window.exact, window.cached) == (9, 7, 8)
    window.restart(0)
    shown = []
    while window.cached < 8:
        action = window.next_action()
        window.advance(action)
        shown.append((action.phase, action.start, action.stop, action.replay))
    assert shown == [(Phase.DENSE, 0, 7, False), (Phase.SPARSE, 7, 8, True)]


def test_an_ended_draft_is_verified_at_once() -> None:
    window = Window("verify", 32, 4, 4)
    window.advance(window.next_action())
    window.advance(window.next_action())
    assert window.next_action(draft_ended=True) == Action(Phase.DENSE, 4, 6, Rows.ALL)


def test_a_long_prompt_comes_in_chunks_and_only_the_last_has_logits() -> None:
    window = Window("fused", 32, 10, 10)
    limits = ForwardLimits(
        num_tokens=4, logit_rows=8, rectify_rows=4, mixed_rows=4, attention_context=1
    )
    chunks = []
    while window.exact < 10:
        forward = next_forward([(0, window.next_action())], limits, Phase.DENSE)
        ((_, action),) = forward.actions
        chunks.append((action.start, action.stop, action.logits))
        window.advance(action)
    assert chunks == [(0, 4, Rows.NONE), (4, 8, Rows.NONE), (8, 10, Rows.LAST)]
    assert window.length == 11


MIXED = ForwardLimits(
    num_tokens=2048, logit_rows=8, rectify_rows=32, mixed_rows=512, attention_context=1000
)
PROMPT = Action(Phase.DENSE, 0, 9000, Rows.LAST, prefill=True)
STEP = Action(Phase.SPARSE, 99, 100, Rows.LAST)
RECTIFICATION = Action(Phase.DENSE, 68, 100, Rows.LAST)


@pytest.mark.parametrize(
    ("start", "rows"),
    [(0, 512), (999, 512), (1000, 256), (1999, 256), (2000, 128), (3999, 128), (8000, 128)],
)
def test_a_prompt_takes_fewer_rows_the_more_context_they_see(start: int, rows: int) -> None:
    prompt = dataclasses.replace(PROMPT, start=start)
    assert MIXED.prompt_rows(start) == rows
    ((_, chunk),) = next_forward([(0, prompt), (1, STEP)], MIXED, Phase.SPARSE).actions
    assert chunk.num_rows == rows
    ((_, chunk),) = next_forward([(0, prompt)], MIXED, Phase.SPARSE).actions
    assert chunk.num_rows == min(2048, 9000 - start), "nobody waits for it"


def test_the_longest_context_bounds_a_forward_of_several_prompts() -> None:
    late = dataclasses.replace(PROMPT, start=5000)
    end = dataclasses.replace(PROMPT, start=5000, stop=5040)

    def rows(*dense: Action, prefill_first: bool = False) -> list[int]:
        wanted = [(0, STEP), *enumerate(dense, 1)]
        forward = next_forward(wanted, MIXED, Phase.SPARSE, prefill_first)
        return [action.num_rows for _, action in forward.actions]

    assert rows(late, PROMPT) == [128]
    assert rows(end, PROMPT) == [40, 88]
    assert rows(dataclasses.replace(PROMPT, stop=100), late) == [100, 28]
    assert rows(RECTIFICATION, late) == [32, 96]
    assert rows(RECTIFICATION, late, prefill_first=True) == [128]
    assert rows(RECTIFICATION, PROMPT, prefill_first=True) == [512]


def test_windows_wait_for_one_another_but_not_for_a_second_chunk() -> None:
    def rows(*dense: Action) -> list[int]:
        forward = next_forward([(0, STEP), *enumerate(dense, 1)], MIXED, Phase.SPARSE)
        return [action.num_rows for _, action in forward.actions]

    assert rows(*[RECTIFICATION] * 3) == [32]
    assert rows(*[RECTIFICATION] * 3, PROMPT) == [32, 32, 32, 416]
    assert rows(*[RECTIFICATION] * 3, dataclasses.replace(PROMPT, start=5000)) == [32, 32, 32, 32]


def test_windows_that_end_together_are_staggered_once() -> None:
    """Dense passes of equal windows spread over forwards and stay spread; nobody is skipped."""
    limits = ForwardLimits(
        num_tokens=64, logit_rows=8, rectify_rows=8, mixed_rows=64, attention_context=100
    )
    windows = {name: Window("fused", 8, 1, 1) for name in range(4)}
    previous, together, dense = Phase.SPARSE, [], 0
    for _ in range(200):
        wanted = [(name, window.next_action()) for name, window in windows.items()]
        forward = next_forward(wanted, limits, previous)
        previous = forward.phase
        if forward.phase is Phase.DENSE and not any(a.prefill for _, a in forward.actions):
            together.append(len(forward.actions))
            dense += 1
        for name, action in forward.actions:
            windows[name].advance(action)
    assert dense > 20
    assert max(together) == 1
    lengths = [window.length for window in windows.values()]
    assert max(lengths) - min(lengths) <= 8


MODES = st.sampled_from(["dense", "none", "fused", "separate", "verify"])


@given(
    st.lists(
        st.tuples(MODES, st.integers(1, 8), st.integers(1, 40), st.sampled_from((0, 30, 60))),
        min_size=1,
        max_size=6,
    ),
    st.integers(8, 32),
    st.randoms(),
)
def test_random_batches(specs, num_tokens, random) -> None:  # type: ignore[no-untyped-def]
    limits = ForwardLimits(
        num_tokens=num_tokens,
        logit_rows=max(8, len(specs)),
        rectify_rows=8,
        mixed_rows=num_tokens,
        attention_context=random.choice((1, 10, 100)),
    )
    windows = {i: Window(mode, f, p, p, below) for i, (mode, f, p, below) in enumerate(specs)}
    previous, steps = Phase.SPARSE, dict.fromkeys(windows, 0)
    for _ in range(300):
        wanted = [(name, window.next_action()) for name, window in windows.items()]
        forward = next_forward(wanted, limits, previous)
        previous = forward.phase
        assert forward.actions, "a forward without work"
        assert sum(a.num_rows for _, a in forward.actions) <= num_tokens
        assert sum(a.num_logits for _, a in forward.actions) <= limits.logit_rows
        for name, action in forward.actions:
            window = windows[name]
            assert action.phase is forward.phase
            assert 0 <= action.start < action.stop <= window.length
            accepted = random.randint(0, action.num_rows - 1) if action.logits is Rows.ALL else 0
            before = window.exact
            window.advance(action, accepted)
            steps[name] += 1
            assert window.exact >= before
            # The cache always covers the window: at most interval tokens are not dense-exact.
            if window.exact >= window.prompt_length and window.mode != "none":
                assert 1 <= window.length - window.exact <= window.interval + 1
    assert min(steps.values()) > 0, "a sequence starved"
