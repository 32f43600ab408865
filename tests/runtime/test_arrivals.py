"""Random arrivals on a model in fp32: every request gives what it gives alone.

``test_simulation`` shows the same of a session with integers in place of K/V. Here the batch also
changes how sums are rounded, and a token or a block could change where two of them nearly tie.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch

from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, RectifyMode, SchedulerConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.torch_executor import TorchExecutor
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.session import Session
from trt_resa.sampling_params import SamplingParams

LONGEST, BLOCK = 560, 16
MODES: tuple[RectifyMode, ...] = ("fused", "fused", "separate", "verify", "dense", "none")


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    mode: RectifyMode
    tokens: int


class Machine:
    """Makes sessions on one engine, and sequences for them."""

    def __init__(self, engine: EngineDirectory) -> None:
        self._engine = engine
        built = engine.config.sparse_attention_config
        self._sparse = dataclasses.replace(built, dense_below=0, keep_ratio=0.25)

    def session(self, batch: int, pool: int, rows: int, mixed: int, reuse: bool) -> Session:
        limits = Limits(batch, LONGEST, LONGEST, rows, max(batch, self._sparse.rectify_interval))
        cache = KvCacheConfig(max_tokens=pool * BLOCK, enable_block_reuse=reuse)
        cpu = torch.device("cpu")
        executor = TorchExecutor(self._engine, self._sparse, cache, limits, cpu, torch.float32)
        scheduling = SchedulerConfig(dense_rows_while_decoding=mixed)
        return Session(executor, limits, self._sparse, cache, scheduling)

    def sequence(self, request: Request, request_id: int = 0) -> Sequence:
        sparse = dataclasses.replace(self._sparse, rectify_mode=request.mode)
        params = SamplingParams(max_tokens=request.tokens, ignore_eos=True)
        return Sequence(request_id, 0, list(request.prompt), params, sparse, LONGEST, (), None)

    def alone(self, request: Request) -> list[int]:
        session = self.session(1, num_blocks(LONGEST, BLOCK), 256, 256, reuse=False)
        sequence = self.sequence(request)
        session.submit(sequence)
        while not session.idle:
            session.step()
        return sequence.output.token_ids


@pytest.fixture(scope="module")
def machine(tiny_engine: Path) -> Machine:
    return Machine(EngineDirectory(tiny_engine))


@pytest.fixture(scope="module")
def requests(machine: Machine) -> list[tuple[Request, list[int]]]:
    random = Random(7)
    vocab = machine.session(1, 1, 1, 1, reuse=False)._executor.model.vocab_size
    drawn = [
        Request(
            random.choices(range(vocab), k=random.randint(20, 420)),
            MODES[number % len(MODES)],
            random.randint(30, 120),
        )
        for number in range(18)
    ]
    return [(request, machine.alone(request)) for request in drawn]


@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 40), marks=pytest.mark.slow)], ids=str
)
def test_a_request_gives_what_it_gives_alone(
    machine: Machine, requests: list[tuple[Request, list[int]]], seeds: range
) -> None:
    assert len({token for _, tokens in requests for token in tokens}) > 50
    together = 0
    for seed in seeds:
        random = Random(seed)
        session = machine.session(
            batch=random.choice((2, 4, 8)),
            pool=random.choice((40, 64, 200)),
            rows=random.choice((64, 256, 512)),
            mixed=random.choice((16, 64, 256)),
            reuse=random.random() < 0.5,
        )
        chosen = random.choices(requests, k=random.randint(3, 7))
        arrivals = sorted(random.randrange(150) for _ in chosen)
        sequences: list[Sequence] = []
        time = 0
        while not session.idle or len(sequences) < len(chosen):
            while len(sequences) < len(chosen) and arrivals[len(sequences)] <= time:
                sequences.append(machine.sequence(chosen[len(sequences)][0], len(sequences)))
                session.submit(sequences[-1])
            if not session.idle:
                together += len(session.step()) > 1
            time += 1
        found = [sequence.output.token_ids for sequence in sequences]
        assert found == [tokens for _, tokens in chosen], f"pattern {seed}"
    assert together > 100 * len(seeds)
