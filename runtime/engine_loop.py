"""A thread that steps the session, and the handles through which requests are followed."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from trt_resa.errors import RequestError
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.session import Session


class RequestHandle:
    """One request under way. Await it, iterate over it (also with ``async for``), or ``result()``.

    Iterating yields a RequestOutput per piece of new output, the last with ``finished``; without
    ``streaming`` only that last one.
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
        self._ready: queue.SimpleQueue[RequestOutput | BaseException] = queue.SimpleQueue()
        self._last: RequestOutput | None = None

    def cancel(self) -> None:
        """End the request; its last output has finish_reason "cancelled"."""
        self._cancel(self.request_id)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """The finished output; TimeoutError after ``timeout`` seconds, the request going on."""
        while self._last is None or not self._last.finished:
            self._next(timeout)
        return self._last

    def __iter__(self) -> Iterator[RequestOutput]:
        while self._last is None or not self._last.finished:
            yield self._next(None)

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        while self._last is None or not self._last.finished:
            yield await asyncio.to_thread(self._next, None)

    def __await__(self):  # type: ignore[no-untyped-def]
        return asyncio.to_thread(self.result).__await__()

    def publish(self) -> None:
        """Called by the loop after a step that moved one of the sequences."""
        finished = all(sequence.finished for sequence in self.sequences)
        if not (self._streaming or finished):
            return
        outputs = [sequence.take_output() for sequence in self.sequences]
        if finished or any(output.token_ids_diff or output.text_diff for output in outputs):
            self._ready.put(
                RequestOutput(
                    self.request_id, self._prompt, self._prompt_token_ids, outputs, finished
                )
            )

    def fail(self, error: BaseException) -> None:
        self._ready.put(error)

    def _next(self, timeout: float | None) -> RequestOutput:
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"request {self.request_id} is not done after {timeout} s") from None
        if isinstance(item, BaseException):
            raise item
        self._last = item
        return item


class EngineLoop:
    """Owns the thread that steps the session; every method may be called from any thread.

    The session is touched by that thread alone: submissions and cancellations are messages that it
    takes between two forwards.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._handles: dict[int, RequestHandle] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._metrics = session.metrics()
        self._thread = threading.Thread(target=self._run, name="trt-resa-engine", daemon=True)
        self._thread.start()

    def submit(self, handle: RequestHandle) -> None:
        if self._closed:
            raise RequestError("this LLM was shut down; make a new one")
        self._inbox.put(lambda: self._start(handle))

    def cancel(self, request_id: int) -> None:
        """End a request; one that is finished or unknown is left as it is."""
        self._inbox.put(lambda: self._end(request_id))

    def metrics(self) -> Metrics:
        """As of the last change that the thread made."""
        return self._metrics

    def shutdown(self) -> None:
        """Finish what is under way, then stop the thread."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not (closing and self._session.idle):
            while not self._inbox.empty() or (self._session.idle and not closing):
                message = self._inbox.get()
                if message is None:
                    closing = True
                else:
                    message()
                    self._metrics = self._session.metrics()
            if not self._session.idle:
                try:
                    moved = self._session.step()
                    self._metrics = self._session.metrics()
                    self._publish(moved)
                except Exception as error:
                    self._fail(error)
                    self._metrics = self._session.metrics()

    def _start(self, handle: RequestHandle) -> None:
        self._handles[handle.request_id] = handle
        for sequence in handle.sequences:
            self._session.submit(sequence)

    def _end(self, request_id: int) -> None:
        handle = self._handles.pop(request_id, None)
        if handle is not None:
            self._session.cancel(request_id)
            handle.publish()

    def _publish(self, moved: list[Sequence]) -> None:
        for request_id in dict.fromkeys(sequence.request_id for sequence in moved):
            handle = self._handles[request_id]
            handle.publish()
            if all(sequence.finished for sequence in handle.sequences):
                del self._handles[request_id]

    def _fail(self, error: Exception) -> None:
        """A forward failed: every request under way gets the error; later ones start afresh."""
        for request_id, handle in self._handles.items():
            self._session.cancel(request_id)
            handle.fail(error)
        self._handles.clear()
