"""Following a request from any thread or coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.sequence import Sequence


class RequestHandle:
    """One request under way. Await it, iterate over it (also with ``async for``), or ``result()``.

    Iterating yields a RequestOutput per piece of new output, the last with ``finished``; without
    ``streaming`` only that last one. Pieces that nobody has taken yet become one. To leave the
    iteration early, or to be cancelled while waiting in a coroutine, cancels the request. Any
    number of coroutines can wait, without a thread each.
    """

    def __init__(
        self,
        request_id: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        sequences: list[Sequence],
        streaming: bool,
        cancel: Callable[[int], None],
    ) -> None:
        self.request_id = request_id
        self.sequences = sequences
        self._prompt, self._prompt_token_ids = prompt, prompt_token_ids
        self._streaming = streaming
        self._cancel = cancel
        self._news = _News()
        self._last: RequestOutput | None = None

    def cancel(self) -> None:
        """End the request; its last output has finish_reason "cancelled"."""
        self._cancel(self.request_id)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """The finished output; TimeoutError after ``timeout`` seconds, the request going on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._last is None or not self._last.finished:
            left = None if deadline is None else deadline - time.monotonic()
            output = self._news.take(left)
            if output is None:
                raise TimeoutError(f"request {self.request_id} is not done after {timeout} s")
            self._last = output
        return self._last

    def __iter__(self) -> Iterator[RequestOutput]:
        try:
            while self._last is None or not self._last.finished:
                self._last = self._news.take()
                assert self._last is not None
                yield self._last
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        try:
            while self._last is None or not self._last.finished:
                self._last = await self._news.take_async()
                yield self._last
        finally:
            self._leave()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self._finished().__await__()

    async def _finished(self) -> RequestOutput:
        try:
            while self._last is None or not self._last.finished:
                self._last = await self._news.take_async()
            return self._last
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._last is None or not self._last.finished:
            self.cancel()

    def publish(self) -> None:
        """Called by the engine's thread after a step that moved one of the sequences."""
        finished = all(sequence.finished for sequence in self.sequences)
        if not (self._streaming or finished):
            return
        outputs = [sequence.take_output() for sequence in self.sequences]
        if finished or any(output.token_ids_diff or output.text_diff for output in outputs):
            self._news.put(
                RequestOutput(
                    self.request_id, self._prompt, self._prompt_token_ids, outputs, finished
                )
            )

    def fail(self, error: BaseException) -> None:
        """Called by the engine's thread: whoever waits, now or later, gets ``error``."""
        self._news.fail(error)


class _News:
    """The newest output that nobody has taken yet, and who waits for one.

    The last one, or an error, stays for whoever asks later.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._output: RequestOutput | None = None
        self._error: BaseException | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def put(self, output: RequestOutput) -> None:
        with self._changed:
            self._output = output if self._output is None else output.after(self._output)
            self._wake()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._wake()

    def take(self, timeout: float | None = None) -> RequestOutput | None:
        """None when there is nothing after ``timeout`` seconds."""
        with self._changed:
            there = self._changed.wait_for(self._is_there, timeout)
            return self._taken() if there else None

    async def take_async(self) -> RequestOutput:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._is_there():
                    return self._taken()
                waiter: asyncio.Future[None] = loop.create_future()
                self._waiters.append((loop, waiter))
            await waiter

    def _is_there(self) -> bool:
        return self._output is not None or self._error is not None

    def _taken(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        output = self._output
        assert output is not None
        if not output.finished:
            self._output = None
        return output

    def _wake(self) -> None:
        self._changed.notify_all()
        for loop, waiter in self._waiters:
            # A loop that was closed raises, and has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_set, waiter)
        self._waiters.clear()


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
