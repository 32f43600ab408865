"""Many short requests of every kind at once, for as long as one asks; and what memory they take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import psutil
import torch

from trt_resa import LLM, SamplingParams

MODES = ("fused", "separate", "verify", "none", "dense")
#: Requests at once, and seconds between two samples.
CLIENTS, INTERVAL = 12, 2.0
MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """MiB in use at a moment: of the process, and of the whole GPU as its driver counts."""

    seconds: float
    host: float
    device: float
    captures: int

    @classmethod
    def now(cls, llm: LLM, since: float) -> Sample:
        device = 0
        if llm.device.type == "cuda":
            free, size = torch.cuda.mem_get_info(llm.device)
            device = size - free
        host = psutil.Process().memory_info().rss
        captures = getattr(llm._executor, "captures", 0)
        return cls(time.monotonic() - since, host / MIB, device / MIB, captures)


def a_request(random: Random, prompts: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A prompt and the other arguments of ``LLM.generate_async``."""
    prompt = random.choice(prompts)
    params = SamplingParams(
        max_tokens=random.randint(1, 96),
        temperature=random.choice((0.0, 0.0, 0.9)),
        seed=random.randrange(1000),
        stop=random.choice(((), (), (".",))),
        repetition_penalty=random.choice((1.0, 1.0, 1.2)),
        logprobs=random.choice((None, None, 2)),
        n=random.choice((1, 1, 1, 2)),
        ignore_eos=True,
    )
    return prompt[: random.randint(40, len(prompt))], {
        "sampling_params": params,
        "streaming": random.random() < 0.5,
        "rectify_mode": random.choice(MODES),
        "sparse_attention_config": random.choice((None, None, None, {"keep_ratio": 0.3})),
        "timeout": random.choice((None, None, None, 0.1)),
    }


async def _client(
    llm: LLM, prompts: Sequence[str], random: Random, end: float, reasons: Counter[str]
) -> None:
    """One request after another; every fifth is cancelled at some moment, if it still runs."""
    while time.monotonic() < end:
        prompt, arguments = a_request(random, prompts)
        handle = llm.generate_async(prompt, **arguments)
        if random.random() < 0.2:
            asyncio.get_running_loop().call_later(random.random() * 0.3, handle.cancel)
        last = None
        async for output in handle:
            last = output
        assert last is not None
        assert last.finished
        reasons.update(str(each.finish_reason) for each in last.outputs)


def run_mixed_load(
    llm: LLM, prompts: Sequence[str], seconds: float
) -> tuple[list[Sample], Counter[str]]:
    """Samples of memory, and how the completions ended."""
    reasons: Counter[str] = Counter()
    start = time.monotonic()

    async def everything() -> list[Sample]:
        end = start + seconds
        clients = asyncio.gather(
            *(_client(llm, prompts, Random(seed), end, reasons) for seed in range(CLIENTS))
        )
        samples = []
        while not clients.done():
            await asyncio.wait([clients], timeout=INTERVAL)
            samples.append(Sample.now(llm, start))
        await clients
        return samples

    return asyncio.run(everything()), reasons
