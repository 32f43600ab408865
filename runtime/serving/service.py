"""Follows requests: a thread with one asyncio task for each, from its start to its last response.

Written against two small protocols, so that nothing here knows Triton.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from trt_resa.errors import TrtResaError
from trt_resa.runtime.llm import LLM
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.serving.requests import TextRequest

if TYPE_CHECKING:
    from trt_resa.runtime.request_handle import RequestHandle

#: How often a request is asked whether its client has gone, and the metrics are passed on.
_POLL_SECONDS = 0.1
#: Prompts tokenized at once; a long one does not hold up the others.
_TOKENIZER_THREADS = 4


class Answer(Protocol):
    """Where the responses of one request go. After a finished output or an error, no more do."""

    def send(self, output: RequestOutput, first: bool) -> None: ...
    def refuse(self, error: TrtResaError) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def cancelled(self) -> None: ...
    def is_cancelled(self) -> bool: ...


class Report(Protocol):
    """Where figures go."""

    def first_piece(self, seconds: float) -> None: ...
    def last_piece(self, seconds: float, tokens: int) -> None: ...
    def update(self, metrics: Metrics) -> None: ...


class Service:
    """Serves requests with ``llm`` until ``close``, which finishes those under way."""

    def __init__(self, llm: LLM, report: Report, log: Callable[[str], None]) -> None:
        self._llm, self._report, self._log = llm, report, log
        self._tasks: set[asyncio.Task[None]] = set()
        self._starters = ThreadPoolExecutor(_TOKENIZER_THREADS, "trt-resa-tokenize")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="trt-resa-serving", daemon=True)
        self._thread.start()

    def submit(self, request: TextRequest, answer: Answer) -> None:
        """Start a request and return at once."""
        self._loop.call_soon_threadsafe(self._start, request, answer, time.monotonic())

    def close(self) -> None:
        """Finish the requests under way, then stop the LLM and the thread."""
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
        self._llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._starters.shutdown()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        reporting = self._loop.create_task(self._report_regularly())
        self._loop.run_forever()
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(reporting)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _start(self, request: TextRequest, answer: Answer, arrival: float) -> None:
        task = self._loop.create_task(self._serve(request, answer, arrival))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _report_regularly(self) -> None:
        """Figures are no reason to fail: where they cannot be passed on, they stop."""
        try:
            while True:
                self._report.update(self._llm.metrics())
                await asyncio.sleep(_POLL_SECONDS)
        except Exception as error:
            self._log(f"no more metrics: {type(error).__name__}: {error}")

    async def _serve(self, request: TextRequest, answer: Answer, arrival: float) -> None:
        try:
            await self._follow(request, answer, arrival)
        except TrtResaError as error:
            self._finally(answer.refuse, error)
        except Exception as error:
            self._log(f"a request failed: {type(error).__name__}: {error}")
            self._finally(answer.fail, error)

    async def _follow(self, request: TextRequest, answer: Answer, arrival: float) -> None:
        handle = await self._loop.run_in_executor(self._starters, self._generate, request)
        watch = self._loop.create_task(self._watch(handle, answer))
        begin: float | None = None
        first_tokens = 0
        try:
            # Streamed from the LLM in any case: the figures are of the first piece and the last.
            async for output in handle:
                completion = output.outputs[0]
                if completion.finish_reason == "cancelled":
                    answer.cancelled()
                    return
                now = time.monotonic()
                if request.stream or output.finished:
                    answer.send(output, first=begin is None or not request.stream)
                if begin is None:
                    begin, first_tokens = now, len(completion.token_ids)
                    self._report.first_piece(now - arrival)
                if output.finished:
                    self._report.last_piece(now - begin, len(completion.token_ids) - first_tokens)
        except BaseException:
            handle.cancel()
            raise
        finally:
            watch.cancel()

    def _generate(self, request: TextRequest) -> RequestHandle:
        return self._llm.generate_async(
            request.prompt, request.params, streaming=True, rectify_mode=request.rectify_mode
        )

    async def _watch(self, handle: RequestHandle, answer: Answer) -> None:
        """End the request when its client has gone."""
        while not answer.is_cancelled():
            await asyncio.sleep(_POLL_SECONDS)
        handle.cancel()

    def _finally(self, send: Callable[..., None], error: BaseException) -> None:
        """A last word to a client that may have gone."""
        try:
            send(error)
        except Exception as gone:
            self._log(f"an error could not be sent: {gone}")
