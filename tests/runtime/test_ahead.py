"""One forward ahead: it is submitted before the tokens of the one before it are read, and nothing
that was computed behind a stop is ever seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.runtime.fake_executor import VOCAB, FakeExecutor
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.contract import Int32Array, Phase, Step
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.deferred import Deferred, Later
from trt_resa.runtime.sequence import Sequence as TokenSequence
from trt_resa.runtime.session import Session
from trt_resa.sampling_params import SamplingParams

LIMITS = Limits(8, 160, 160, 512, 8)
SPARSE = SparseAttentionConfig(keep_ratio=0.3, min_blocks=1, rectify_interval=8, dense_below=0)
MODES = ("fused", "separate", "verify", "none", "dense")
PROMPT = [3 * i % VOCAB for i in range(40)]


@dataclass
class _Recorded:
    """A forward whose reads are noted."""

    forward: Deferred
    note: Callable[[], None]

    def tokens(self) -> Later[Int32Array]:
        return self._noted(self.forward.tokens().get)

    def logits(self, rows: Sequence[int] | None = None) -> Later[torch.Tensor]:
        return self._noted(self.forward.logits(rows).get)

    def drop(self, sequences: Collection[int]) -> None:
        self.forward.drop(sequences)

    def _noted(self, get: Callable[[], Any]) -> Later[Any]:
        def read() -> Any:
            self.note()
            return get()

        return Later(read)


@dataclass
class Recorder(FakeExecutor):
    """``steps`` in the order of submission; ``newest`` when forward n was first read."""

    steps: list[Step] = field(default_factory=list)
    newest: dict[int, int] = field(default_factory=dict)

    def __init__(self, pool: int = 64) -> None:
        super().__init__(pool, SPARSE, LIMITS)
        self.steps, self.newest = [], {}
        queue = self.submit

        def submit(step: Step) -> _Recorded:
            number = len(self.steps)
            self.steps.append(step)
            return _Recorded(
                queue(step), lambda: self.newest.setdefault(number, len(self.steps) - 1)
            )

        self.submit = submit  # type: ignore[assignment]

    @property
    def ahead(self) -> list[int]:
        """The forwards that another had been submitted behind when they were read."""
        assert all(newest - number in (0, 1) for number, newest in self.newest.items())
        return [number for number, newest in self.newest.items() if newest > number]


def session(executor: FakeExecutor, reuse: bool = True) -> Session:
    return Session(
        executor, LIMITS, SPARSE, KvCacheConfig(enable_block_reuse=reuse), SchedulerConfig()
    )


def sequence(
    number: int = 0,
    mode: str = "fused",
    prompt: list[int] = PROMPT,
    eos: tuple[int, ...] = (),
    dense_below: int = 0,
    **params: Any,
) -> TokenSequence:
    sparse = SparseAttentionConfig(
        keep_ratio=0.3,
        min_blocks=1,
        rectify_interval=8,
        rectify_mode=mode,  # type: ignore[arg-type]
        dense_below=dense_below,
        drift_sample=3,
    )
    given = SamplingParams(**{"max_tokens": 30, **params})
    return TokenSequence(number, 0, prompt, given, sparse, 160, eos, None)


def run(engine: Session, *sequences: TokenSequence) -> None:
    for each in sequences:
        engine.submit(each)
    while not engine.idle:
        engine.step()
    assert engine.free_blocks == engine.pool_size


def behind(monkeypatch: pytest.MonkeyPatch, engine: Session) -> Session:
    """A session that reads each forward before it submits the next one."""
    scheduler, following = engine._scheduler, engine._scheduler.next
    monkeypatch.setattr(
        scheduler, "next", lambda ahead=False: None if ahead else following(), raising=True
    )
    return engine


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dense_below", [0, 60])
def test_every_forward_is_submitted_before_the_one_before_it_is_read(
    mode: str, dense_below: int
) -> None:
    """All but the last, which nothing follows, and the verifications, which say what follows."""
    executor = Recorder()
    run(session(executor), sequence(mode=mode, dense_below=dense_below))
    last = len(executor.steps) - 1
    assert last >= 29 or mode == "verify"
    verifications = [
        number
        for number, step in enumerate(executor.steps)
        if mode == "verify" and number and step.phase is Phase.DENSE
    ]
    assert executor.ahead == [n for n in range(last) if n not in verifications]
    late = [number for number, step in enumerate(executor.steps) if (step.input_ids < 0).any()]
    assert set(late) <= {number + 1 for number in executor.ahead}
    assert len(late) >= 12


def test_a_batch_of_all_modes_and_prompts_in_chunks_runs_ahead() -> None:
    executor = Recorder()
    prompts = [[*PROMPT[:number], *PROMPT] for number in range(8)]
    modes = [MODES[number % 5] for number in range(8)]
    run(
        session(executor),
        *(
            sequence(number, mode, prompt)
            for number, (mode, prompt) in enumerate(zip(modes, prompts, strict=True))
        ),
    )
    assert len(executor.ahead) > 0.7 * len(executor.steps)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"bad_token_ids": (1,)},
        {"logprobs": 2},
    ],
    ids=lambda params: next(iter(params)),
)
def test_tokens_chosen_on_the_host_are_waited_for(params: dict[str, Any]) -> None:
    """Also by others in the same forward, who choose nothing else for that."""
    executor = Recorder()
    plain = sequence(0, "none", max_tokens=40)
    hosted = sequence(1, "none", prompt=PROMPT[::-1], **params)
    run(session(executor), plain, hosted)
    with_hosted = max(n for n, step in enumerate(executor.steps) if step.batch_size == 2)
    assert all(number > with_hosted for number in executor.ahead)
    assert executor.ahead, "the rest of the plain one runs ahead"
    alone = sequence(0, "none", max_tokens=40)
    run(session(FakeExecutor(64, SPARSE, LIMITS)), alone)
    assert plain.output.token_ids == alone.output.token_ids
    assert plain.output.stats == alone.output.stats


def stopping_prompt(mode: str, dense_below: int, place: int) -> tuple[list[int], int]:
    """A prompt, and a token that its output first has at ``place``."""
    for seed in range(1000):
        prompt = [(3 * i + seed * i * i) % VOCAB for i in range(38)] + [seed % VOCAB, seed // VOCAB]
        free = sequence(mode=mode, prompt=prompt, dense_below=dense_below)
        run(session(FakeExecutor(64, SPARSE, LIMITS)), free)
        token = free.output.token_ids[place]
        if free.output.token_ids.index(token) == place:
            return prompt, token
    raise AssertionError("no prompt gives such an output")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dense_below", [0, 44])
@pytest.mark.parametrize("place", [0, 1, 3, 5, 6, 7, 8, 9, 15])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_a_stop_found_late_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, mode: str, dense_below: int, place: int, together: bool
) -> None:
    """Output and counts are those of a session that reads first; what was kept can be reused.

    At place 7 the step behind the stop is the dense pass that would make a block dense-exact.
    """
    prompt, token = stopping_prompt(mode, dense_below, place)

    def requests() -> list[TokenSequence]:
        stopped = sequence(0, mode, prompt, (token,), dense_below)
        return [stopped, sequence(1, mode, PROMPT, (), dense_below)][: 1 + together]

    expected, got = requests(), requests()
    run(behind(monkeypatch, session(FakeExecutor(64, SPARSE, LIMITS))), *expected)
    executor = Recorder()
    engine = session(executor)
    run(engine, *got)
    assert [each.output for each in got] == [each.output for each in expected]
    assert got[0].output.finish_reason == "stop"
    assert len(got[0].output.token_ids) == place + 1
    assert executor.ahead
    # A request that goes on from there takes blocks of the first and must find them dense-exact.
    longer = [*prompt, *got[0].output.token_ids, *range(9)]
    again, alone = sequence(2, mode, longer), sequence(2, mode, longer)
    run(engine, again)
    run(session(FakeExecutor(64, SPARSE, LIMITS), reuse=False), alone)
    assert engine.metrics().kv_blocks_reused >= 2
    assert again.output.token_ids == alone.output.token_ids


def test_what_is_in_vain_is_not_computed_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a sequence that stops while its next step waits are left out of it."""

    def rows(ahead: bool) -> int:
        executor = Recorder()
        engine = session(executor)
        if not ahead:
            behind(monkeypatch, engine)
        run(engine, *(sequence(n, prompt=PROMPT[n:], eos=(n,), max_tokens=60) for n in range(6)))
        assert executor.ahead or not ahead
        return executor.rows

    assert rows(ahead=True) == rows(ahead=False)


def test_the_last_forward_in_vain_is_not_computed() -> None:
    free = sequence()
    run(session(FakeExecutor(64, SPARSE, LIMITS)), free)
    token = free.output.token_ids[20]
    place = free.output.token_ids.index(token)
    executor = Recorder()
    run(session(executor), sequence(eos=(token,)))
    assert executor.forwards == place + 1
    assert len(executor.steps) == place + 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 15])
def test_a_cancellation_reaches_a_sequence_under_way(mode: str, steps: int) -> None:
    executor = Recorder()
    engine = session(executor)
    other = sequence(1, mode, PROMPT[::-1])
    victim = sequence(0, mode, max_tokens=60)
    for each in (victim, other):
        engine.submit(each)
    for _ in range(steps):
        engine.step()
    shown = list(victim.output.token_ids)
    assert engine._under_way or mode == "verify"
    engine.end(0, "cancelled")
    while not engine.idle:
        assert victim not in engine.step()
    assert victim.output.token_ids == shown
    assert victim.output.finish_reason == "cancelled"
    assert engine.free_blocks == engine.pool_size
    alone = sequence(1, mode, PROMPT[::-1])
    run(session(FakeExecutor(64, SPARSE, LIMITS)), alone)
    assert other.output == alone.output
    generated = len(shown) + len(other.output.token_ids)
    assert engine.metrics().generated_tokens == generated


def test_the_only_sequence_is_cancelled_and_its_forward_dropped() -> None:
    executor = Recorder()
    engine = session(executor)
    engine.submit(sequence(max_tokens=60))
    for _ in range(5):
        engine.step()
    assert len(executor.steps) == 6
    engine.end(0, "timeout")
    assert engine.idle
    assert not engine._under_way
    assert engine.free_blocks == engine.pool_size
    after = sequence(1, prompt=PROMPT[::-1])
    run(engine, after)
    alone = sequence(1, prompt=PROMPT[::-1])
    run(session(FakeExecutor(64, SPARSE, LIMITS)), alone)
    assert after.output == alone.output
    assert executor.forwards == len(executor.steps) - 1


def test_no_forward_is_made_for_a_sequence_whose_last_token_is_under_way() -> None:
    executor = Recorder()
    run(session(executor), sequence(max_tokens=10))
    assert executor.forwards == len(executor.steps) == 10
