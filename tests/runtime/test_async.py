"""Following requests: many coroutines, leaving early, deadlines, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from trt_resa import LLM, SamplingParams
from trt_resa.contract import Step
from trt_resa.errors import RequestError
from trt_resa.runtime.executors.base import SubmittedForward
from trt_resa.runtime.request_handle import RequestHandle

PROMPT = list(range(40))


@pytest.fixture
def llm(tiny_engine: Path) -> Iterator[LLM]:
    with LLM(tiny_engine, device="cpu", max_batch_size=8, max_seq_len=512) as model:
        slow_down(model)
        yield model
        wait_until_idle(model)
        assert model._session.free_blocks == model._session.pool_size
        assert not model._loop._handles


def slow_down(llm: LLM) -> None:
    """A forward takes 2 ms at least, so that early is early on any machine."""
    submit = llm._executor.submit

    def slow(step: Step) -> SubmittedForward:
        time.sleep(0.002)
        return submit(step)

    llm._executor.submit = slow  # type: ignore[method-assign]


def wait_until_idle(llm: LLM) -> None:
    deadline = time.monotonic() + 60
    while not llm._session.idle or not llm._loop._inbox.empty():
        assert time.monotonic() < deadline, "requests are still under way"
        time.sleep(0.01)


def params(tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **changes)


async def collect(handle: RequestHandle) -> list[int]:
    return [token async for output in handle for token in output.outputs[0].token_ids_diff]


def test_64_streams_take_no_threads(llm: LLM) -> None:
    prompts = [[n, *PROMPT] for n in range(64)]
    expected = [llm.generate(p, params(6)).outputs[0].token_ids for p in prompts[:3]]
    before = threading.active_count()

    async def all_of_them() -> list[list[int]]:
        handles = [llm.generate_async(p, params(6), streaming=True) for p in prompts]
        followed = asyncio.gather(*(collect(handle) for handle in handles))
        while not followed.done():
            await asyncio.sleep(0.01)
            assert threading.active_count() == before
        return await followed

    streamed = asyncio.run(all_of_them())
    assert streamed[:3] == expected
    assert {len(tokens) for tokens in streamed} == {6}


def test_the_last_output_is_for_everyone_who_waits(llm: LLM) -> None:
    handle = llm.generate_async(PROMPT, params(20), streaming=True)

    async def several() -> list[list[int]]:
        outputs = await asyncio.gather(handle, handle, handle)
        return [output.outputs[0].token_ids for output in outputs]

    first, *others = asyncio.run(several())
    assert len(first) == 20
    assert others == [first, first]
    assert handle.result(0).outputs[0].token_ids == first
    assert [output.finished for output in handle] == []


def test_the_time_of_a_result_is_that_of_all_its_pieces(llm: LLM) -> None:
    """A piece comes every few milliseconds, and none of them starts the clock anew."""
    handle = llm.generate_async(PROMPT, params(400), streaming=True)
    with pytest.raises(TimeoutError, match=r"request \d+ is not done after 0.1 s"):
        handle.result(timeout=0.1)
    handle.cancel()


def test_an_interrupt_cancels_what_generate_waits_for(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: RequestHandle) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RequestHandle, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([PROMPT] * 3, params(400))
    wait_until_idle(llm)
    assert llm.metrics().generated_tokens < 3 * 400


def test_pieces_that_nobody_took_become_one(llm: LLM) -> None:
    handle = llm.generate_async(PROMPT, params(30), streaming=True)
    wait_until_idle(llm)
    (output,) = handle
    assert output.finished
    assert len(output.outputs[0].token_ids_diff) == 30
    assert output.outputs[0].text_diff == output.outputs[0].text


@pytest.mark.parametrize("how", ["sync", "async", "task", "wait_for"])
def test_leaving_early_cancels(llm: LLM, how: str) -> None:
    handle = llm.generate_async(PROMPT, params(400), streaming=True)

    async def leave() -> None:
        async for _ in handle:
            break

    async def cancel_the_task() -> None:
        task = asyncio.create_task(collect(handle))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def lose_patience() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.05)

    if how == "sync":
        for _ in handle:
            break
    else:
        asyncio.run({"async": leave, "task": cancel_the_task, "wait_for": lose_patience}[how]())
    wait_until_idle(llm)
    output = handle.result(timeout=10).outputs[0]
    assert output.finish_reason == "cancelled"
    assert len(output.token_ids) < 400


def test_an_event_loop_that_ended_does_not_stop_the_engine(llm: LLM) -> None:
    handle = llm.generate_async(PROMPT, params(50), streaming=True)
    loop = asyncio.new_event_loop()
    task = loop.create_task(collect(handle))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert llm.generate(PROMPT, params(5)).finished
    assert not task.done()
    handle.cancel()


def test_a_deadline_ends_a_request_with_what_it_has(llm: LLM) -> None:
    whole = llm.generate(PROMPT, params(400)).outputs[0].token_ids
    output = llm.generate_async(PROMPT, params(400), timeout=0.15).result(60).outputs[0]
    assert output.finish_reason == "timeout"
    assert output.token_ids == whole[: len(output.token_ids)]
    assert len(output.token_ids) < 400
    assert llm.generate_async(PROMPT, params(5), timeout=60).result(60).finished
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(RequestError, match=f"timeout {timeout} must be more than 0 seconds"):
            llm.generate_async(PROMPT, timeout=timeout)


def test_time_in_the_queue_counts(tiny_engine: Path) -> None:
    with LLM(tiny_engine, device="cpu", max_batch_size=1, max_seq_len=512) as llm:
        slow_down(llm)
        running = llm.generate_async(PROMPT, params(300))
        queued = llm.generate_async(PROMPT, params(300), timeout=0.05)
        output = queued.result(60).outputs[0]
        assert (output.finish_reason, output.token_ids) == ("timeout", [])
        assert llm.metrics().requests_active == 1
        running.cancel()


def test_an_error_reaches_whoever_asks_and_whenever(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(step: Step) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(llm._executor, "submit", broken)
        handle = llm.generate_async(PROMPT, params(5))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the device is gone"):
                handle.result(10)
        with pytest.raises(RuntimeError, match="the device is gone"):
            asyncio.run(collect(handle))
    assert llm.generate(PROMPT, params(5)).finished


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_a_forward_that_fails_while_another_is_behind_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The error comes with the results; the next request is not served what was left behind."""
    expected = llm.generate(PROMPT[::-1], params(12)).outputs[0].token_ids
    queue = llm._executor._queue  # type: ignore[attr-defined]
    compute, calls = queue._compute, iter(range(10**6))

    def broken(step: Step) -> torch.Tensor:
        if next(calls) == after:
            raise RuntimeError("the device is gone")
        return compute(step)

    monkeypatch.setattr(queue, "_compute", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        llm.generate([[n, *PROMPT] for n in range(3)], params(40))
    assert llm.generate(PROMPT[::-1], params(12)).outputs[0].token_ids == expected


def test_cancels_and_deadlines_at_any_moment_leave_nothing_behind(tiny_engine: Path) -> None:
    """A pool for two and a half of the requests; the survivors give what they give alone."""
    random = Random(1)
    prompts = [[n, *PROMPT] for n in range(5)]
    cache = {"max_tokens": 20 * 16}
    with LLM(
        tiny_engine, device="cpu", max_batch_size=6, max_seq_len=256, kv_cache_config=cache
    ) as llm:
        whole = [llm.generate(p, params(80)).outputs[0].token_ids for p in prompts]
        slow_down(llm)

        async def one() -> str:
            which = random.randrange(len(prompts))
            timeout = random.choice((None, None, 0.2, 2.0))
            await asyncio.sleep(random.random() * 3)
            handle = llm.generate_async(
                prompts[which], params(80), streaming=random.random() < 0.5, timeout=timeout
            )
            if random.random() < 0.4:
                asyncio.get_running_loop().call_later(random.random() * 0.5, handle.cancel)
            last = None
            async for output in handle:
                assert last is None or not last.finished
                last = output
            assert last is not None
            assert last.finished
            output = last.outputs[0]
            if output.finish_reason == "length":
                assert output.token_ids == whole[which]
            assert output.token_ids == whole[which][: len(output.token_ids)]
            return str(output.finish_reason)

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(one() for _ in range(80)))

        reasons = asyncio.run(all_of_them())
        assert set(reasons) == {"length", "cancelled", "timeout"}
        wait_until_idle(llm)
        assert llm._session.free_blocks == llm._session.pool_size
        metrics = llm.metrics()
        assert (metrics.requests_active, metrics.requests_queued, metrics.kv_blocks_used) == (
            0,
        ) * 3
        assert llm.generate(prompts[0], params(80)).outputs[0].token_ids == whole[0]
