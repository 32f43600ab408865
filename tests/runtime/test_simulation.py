"""The session over thousands of random arrivals, with an executor of integers.

A catalogue of requests is run alone first. Then patterns draw from it: what arrives when, how large
the pool and a forward are, who is cancelled. Every request must give what it gave alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from tests.runtime.fake_executor import VOCAB, FakeExecutor
from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.contract import Phase
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.schedule import Forward
from trt_resa.runtime.scheduler import Place
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.session import Session
from trt_resa.sampling_params import SamplingParams

BLOCK, LONGEST = 16, 160
OWN = SparseAttentionConfig(keep_ratio=0.3, min_blocks=1, rectify_interval=8, dense_below=0)
MODES = ("fused", "separate", "verify", "none", "dense")


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    params: SamplingParams
    sparse: SparseAttentionConfig

    def sequence(self, request_id: int) -> Sequence:
        return Sequence(
            request_id, 0, list(self.prompt), self.params, self.sparse, LONGEST, (3,), None
        )


def catalogue(random: Random) -> list[Request]:
    """Requests of every mode; many prompts begin alike."""
    stems = [[random.randrange(VOCAB) for _ in range(100)] for _ in range(4)]
    requests = []
    for number in range(120):
        stem = random.choice(stems)[: random.randrange(90)]
        prompt = (*stem, *(random.randrange(VOCAB) for _ in range(random.randint(1, 12))))
        if len(prompt) > BLOCK and number % 4 == 0:
            prompt = prompt[: len(prompt) // BLOCK * BLOCK]
        sparse: dict[str, Any] = {
            "keep_ratio": random.choice((0.3, 0.3, 0.6)),
            "min_blocks": 1,
            "rectify_interval": random.randint(1, 8),
            "rectify_mode": MODES[number % len(MODES)],
            "dense_below": random.choice((0, 0, 0, 60)),
            "adaptive_window": random.random() < 0.5,
            "drift_sample": random.choice((0, 1, 3, 8)),
        }
        params = SamplingParams(
            max_tokens=random.choice((1, 9, 20, 40, 60)),
            temperature=random.choice((0.0, 0.0, 1.0)),
            seed=number,
            ignore_eos=random.random() < 0.7,
        )
        requests.append(Request(prompt, params, SparseAttentionConfig(**sparse)))
    return requests


@dataclass
class Seen:
    """What happened over all patterns, so that the test knows that it tested something."""

    preemptions: int = 0
    replays: int = 0
    reused: int = 0
    mixed: int = 0
    shortened: int = 0
    ahead: int = 0
    drift_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class Simulation:
    """A session whose every forward is checked."""

    def __init__(
        self, pool: int, batch: int, rows: int, mixed: int, reuse: bool, seen: Seen
    ) -> None:
        self.limits = Limits(batch, LONGEST, LONGEST, rows, max(batch, 8))
        self.executor = FakeExecutor(pool, OWN, self.limits)
        self.session = Session(
            self.executor,
            self.limits,
            OWN,
            KvCacheConfig(enable_block_reuse=reuse),
            SchedulerConfig(dense_rows_while_decoding=mixed),
        )
        self.scheduler, self.pool = self.session._scheduler, self.session._pool
        self.rectify_rows = max(batch, OWN.rectify_interval)
        self.mixed_rows, self.seen = max(min(mixed, rows), self.rectify_rows), seen
        self._next, self.scheduler.next = self.scheduler.next, self._checked_next  # type: ignore[method-assign]
        self.waits: dict[Sequence, int] = {}

    def _checked_next(self, ahead: bool = False) -> Forward[Place[Sequence]] | None:
        forward = self._next(ahead)
        self.seen.ahead += forward is not None and ahead
        if forward is None:
            assert ahead
            return None
        actions = [action for _, action in forward.actions]
        running = self.scheduler._running
        wanted = [p.sequence.next_action() for p in running]
        decoding = any(action is not None and not action.prefill for action in wanted)
        prefill = sum(action.num_rows for action in actions if action.prefill)
        if forward.phase is Phase.DENSE:
            rectified = sum(action.num_rows for action in actions if not action.prefill)
            reading = any(action is not None and action.prefill for action in wanted)
            assert rectified <= (self.mixed_rows if reading else self.rectify_rows)
            if decoding:
                assert rectified + prefill <= self.mixed_rows
                starts = [action.start for action in actions if action.prefill]
                bounds = [self._prompt_rows(start) for start in starts]
                assert not bounds or rectified + prefill <= min(bounds)
                self.seen.shortened += any(bound < self.mixed_rows for bound in bounds)
            self.seen.mixed += prefill > 0 and rectified > 0
        else:
            assert len({place.sequence.selection for place, _ in forward.actions}) == 1
        self.seen.replays += sum(action.replay for action in actions)
        self._check_blocks(forward)
        self._check_waits(forward)
        return forward

    def _prompt_rows(self, start: int) -> int:
        context = self.executor.model.attention_context
        share = 1 if start < context else 2 if start < 2 * context else 4
        return max(self.mixed_rows // share, self.rectify_rows)

    def _check_blocks(self, forward: Forward[Place[Sequence]]) -> None:
        holders = Counter(b for place in self.scheduler._running for b in place.cache.blocks)
        assert [holders[b] for b in range(self.pool.size)] == self.pool._users
        assert self.pool.available + len(holders) == self.pool.size, "a block leaked"
        written: set[int] = set()
        for place, action in forward.actions:
            blocks = place.cache.blocks
            assert len(blocks) >= num_blocks(action.stop, BLOCK)
            for block in blocks[action.start // BLOCK : num_blocks(action.stop, BLOCK)]:
                assert holders[block] == 1, "a shared block would be written"
                assert block not in self.pool._prefixes, "a block offered to others is written"
                assert block not in written
                written.add(block)
        for block, count in holders.items():
            if count > 1 or block in self.pool._prefixes:
                assert self.executor.exact[block].all(), "shared and not dense-exact"

    def _check_waits(self, forward: Forward[Place[Sequence]]) -> None:
        """A running sequence is served soon, whatever the others want."""
        served = {place.sequence for place, _ in forward.actions}
        running = list(self.scheduler.running)
        order = [s.request_id for s in (*running, *self.scheduler.waiting)]
        assert order == sorted(order), "a sequence was overtaken"
        wanted = {s: s.next_action() for s in running}
        prefills = [s for s, action in wanted.items() if action is not None and action.prefill]
        for sequence in running:
            queues = sequence in prefills[1:]
            waits = self.waits.get(sequence, 0) + 1
            self.waits[sequence] = 0 if queues or sequence in served else waits
            assert self.waits[sequence] <= 4 * self.limits.max_batch_size + 4, "a sequence starves"


def alone(request: Request) -> Sequence:
    """Run by a session that reads each forward before it submits the next one."""
    simulation = Simulation(num_blocks(LONGEST, BLOCK), 1, 1024, 1024, False, Seen())
    following = simulation.scheduler.next
    simulation.scheduler.next = lambda ahead=False: None if ahead else following()  # type: ignore[method-assign]
    sequence = request.sequence(0)
    simulation.session.submit(sequence)
    while not simulation.session.idle:
        simulation.session.step()
    assert simulation.scheduler.preemptions == 0
    return sequence


@pytest.fixture(scope="module")
def requests() -> list[tuple[Request, Sequence]]:
    return [(request, alone(request)) for request in catalogue(Random(0))]


def run_pattern(random: Random, requests: list[tuple[Request, Sequence]], seen: Seen) -> None:
    """One session, some arrivals, some cancellations."""
    simulation = Simulation(
        pool=random.choice((10, 10, 11, 13, 30)),
        batch=random.choice((1, 2, 4, 8)),
        rows=random.choice((8, 16, 64, 512)),
        mixed=random.choice((3, 20, 40, 512)),
        reuse=random.random() < 0.6,
        seen=seen,
    )
    session = simulation.session
    arrivals = sorted(random.randrange(60) for _ in range(random.randint(2, 6)))
    chosen = [random.choice(requests) for _ in arrivals]
    cancelled = {n: random.randrange(80) for n in range(len(chosen)) if random.random() < 0.15}
    sequences: list[Sequence] = []
    ends: Counter[int] = Counter()
    time = 0
    while not session.idle or len(sequences) < len(chosen):
        while len(sequences) < len(chosen) and arrivals[len(sequences)] <= time:
            sequence = chosen[len(sequences)][0].sequence(len(sequences))
            sequences.append(sequence)
            session.submit(sequence)
        for number, moment in cancelled.items():
            if moment == time and number < len(sequences) and not sequences[number].finished:
                session.end(number, "cancelled")
                ends[number] += 1
        if not session.idle:
            for sequence in session.step():
                ends[sequence.request_id] += sequence.finished
        time += 1
        assert time < 6000, "no progress"
    assert ends == Counter(range(len(chosen))), "a request did not end exactly once"
    for sequence, (_, expected) in zip(sequences, chosen, strict=True):
        output, whole = sequence.output, expected.output
        if output.finish_reason == "cancelled":
            assert output.token_ids == whole.token_ids[: len(output.token_ids)]
        else:
            assert output.token_ids == whole.token_ids
            assert output.finish_reason == whole.finish_reason
            assert output.stats == whole.stats
        seen.reasons[str(output.finish_reason)] += 1
    assert simulation.pool.available == simulation.pool.size
    metrics = session.metrics()
    assert (metrics.requests_active, metrics.requests_queued, metrics.kv_blocks_used) == (0, 0, 0)
    assert metrics.generated_tokens == sum(len(s.output.token_ids) for s in sequences)
    assert metrics.drift_rows == sum(s.output.stats.drift_rows for s in sequences)
    seen.drift_rows += metrics.drift_rows
    seen.preemptions += metrics.preemptions
    seen.reused += metrics.kv_blocks_reused


@pytest.mark.parametrize(
    "seeds", [range(500), pytest.param(range(500, 2000), marks=pytest.mark.slow)], ids=str
)
def test_random_arrivals(requests: list[tuple[Request, Sequence]], seeds: range) -> None:
    seen = Seen()
    for seed in seeds:
        try:
            run_pattern(Random(seed), requests, seen)
        except AssertionError as error:
            raise AssertionError(f"pattern {seed}: {error}") from error
    often = len(seeds) // 10
    assert seen.preemptions > often
    assert seen.replays > often
    assert seen.reused > often
    assert seen.mixed > often
    assert seen.shortened > often
    assert seen.ahead > 10 * often
    assert seen.drift_rows > often
    assert min(seen.reasons[reason] for reason in ("length", "stop", "cancelled")) > often
