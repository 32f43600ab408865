"""When the engine or the way to the client breaks in the middle of a request."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import wait_until
from trt_resa import LLM, SamplingParams
from trt_resa.errors import TrtResaError
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.serving.requests import TextRequest
from trt_resa.runtime.serving.service import Service


class Recorded:
    """Both sides of a service: what it answers and what it reports."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.on_send: Callable[[], None] = lambda: None
        self.gone = False
        self.metrics = Metrics()

    def send(self, output: RequestOutput, first: bool) -> None:
        self.on_send()
        self.answers.put(("last" if output.finished else "piece", output))

    def refuse(self, error: TrtResaError) -> None:
        self.answers.put(("refuse", str(error)))

    def fail(self, error: BaseException) -> None:
        self.answers.put(("fail", str(error)))

    def cancelled(self) -> None:
        self.answers.put(("cancelled", None))

    def is_cancelled(self) -> bool:
        return self.gone

    def first_piece(self, seconds: float) -> None: ...
    def last_piece(self, seconds: float, tokens: int) -> None: ...

    def update(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def next(self) -> tuple[str, Any]:
        return self.answers.get(timeout=30)

    def end(self) -> tuple[str, Any]:
        """What comes after the pieces."""
        kind, content = self.next()
        while kind == "piece":
            kind, content = self.next()
        return kind, content


def request(max_tokens: int, prompt: str = "abc", stream: bool = True) -> TextRequest:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return TextRequest(prompt, params, stream, None, False, True, True)


@pytest.fixture
def llm(tiny_engine: Path) -> LLM:
    return LLM(tiny_engine, device="cpu")


@pytest.fixture
def report() -> Recorded:
    return Recorded()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def service(llm: LLM, report: Recorded, log: list[str]) -> Iterator[Service]:
    running = Service(llm, report, log.append)
    yield running
    running.close()


def test_a_failed_forward_is_one_error_and_the_next_request_is_served(
    service: Service, llm: LLM, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Recorded()
    submit = type(llm._executor).submit
    calls = iter(range(10**6))

    def broken(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("the device is on fire")
        return submit(*arguments)

    monkeypatch.setattr(type(llm._executor), "submit", broken)
    service.submit(request(20), answer)
    assert answer.end() == ("fail", "the device is on fire")
    assert log == ["a request failed: RuntimeError: the device is on fire"]
    service.submit(request(20), answer)
    kind, output = answer.end()
    assert kind == "last"
    assert len(output.outputs[0].token_ids) == 20
    assert answer.answers.empty()


def test_a_response_that_cannot_be_sent_ends_its_request(
    service: Service, llm: LLM, log: list[str]
) -> None:
    answer = Recorded()

    def broken() -> None:
        raise OSError("the pipe is broken")

    answer.on_send = broken
    service.submit(request(1500), answer)
    assert answer.next() == ("fail", "the pipe is broken")
    wait_until(lambda: llm.metrics().kv_blocks_used == 0)
    assert llm.metrics().generated_tokens < 1000
    assert len(log) == 1


def test_a_client_that_goes_before_the_first_piece(
    service: Service, llm: LLM, report: Recorded
) -> None:
    answer = Recorded()
    answer.gone = True
    service.submit(request(1500, stream=False), answer)
    assert answer.next() == ("cancelled", None)
    wait_until(lambda: llm.metrics().kv_blocks_used == 0)
    wait_until(lambda: report.metrics.requests_active == 0)


def test_refusals_come_from_the_llm_too(service: Service) -> None:
    answer = Recorded()
    service.submit(request(3, prompt="x" * 3000), answer)
    kind, message = answer.next()
    assert kind == "refuse"
    assert message.startswith("the prompt has 3000 tokens")


def test_closing_finishes_what_is_under_way(llm: LLM) -> None:
    service, answers = Service(llm, Recorded(), lambda _: None), [Recorded() for _ in range(5)]
    for answer in answers:
        service.submit(request(50), answer)
    service.close()
    for answer in answers:
        kind, output = answer.end()
        assert kind == "last"
        assert len(output.outputs[0].token_ids) == 50
