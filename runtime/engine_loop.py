"""A thread that steps the session, and what is said to it."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable

from trt_resa.errors import RequestError
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.request_handle import RequestHandle
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.session import Session


class EngineLoop:
    """Owns the thread that steps the session; every method may be called from any thread.

    The session is touched by that thread alone: submissions and cancellations are messages that it
    takes between two forwards, and there it looks at the deadlines.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._handles: dict[int, RequestHandle] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._closed = False
        self._closing = threading.Lock()
        self._metrics = session.metrics()
        self._thread = threading.Thread(target=self._run, name="trt-resa-engine", daemon=True)
        self._thread.start()

    def submit(self, handle: RequestHandle, timeout: float | None = None) -> None:
        """``timeout``: seconds from now, after which the request ends as it is."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._closing:
            if self._closed:
                raise RequestError("this LLM was shut down; make a new one")
            self._inbox.put(lambda: self._start(handle, deadline))

    def cancel(self, request_id: int) -> None:
        """End a request; one that is finished or unknown is left as it is."""
        self._inbox.put(lambda: self._end(request_id, "cancelled"))

    def metrics(self) -> Metrics:
        """As of the last change that the thread made."""
        return self._metrics

    def shutdown(self) -> None:
        """Finish what is under way, then stop the thread."""
        with self._closing:
            self._closed = True
            self._inbox.put(self._stop)
        self._thread.join()

    def _run(self) -> None:
        while not (self._stopping and self._session.idle):
            try:
                self._take_messages()
                self._expire()
                if not self._session.idle:
                    self._publish(self._session.step())
            except Exception as error:
                self._fail(error)

    def _take_messages(self) -> None:
        """All that are there; while there is nothing to do, wait for one."""
        while not self._inbox.empty() or (self._session.idle and not self._stopping):
            self._inbox.get()()

    def _stop(self) -> None:
        self._stopping = True

    def _start(self, handle: RequestHandle, deadline: float | None) -> None:
        self._handles[handle.request_id] = handle
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, handle.request_id))
        for sequence in handle.sequences:
            self._session.submit(sequence)
        self._metrics = self._session.metrics()

    def _expire(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            _, request_id = heapq.heappop(self._deadlines)
            self._end(request_id, "timeout")

    def _end(self, request_id: int, reason: str) -> None:
        handle = self._handles.pop(request_id, None)
        if handle is not None:
            self._session.end(request_id, reason)
            self._metrics = self._session.metrics()
            handle.publish()

    def _publish(self, moved: list[Sequence]) -> None:
        # Before anyone can see an output, so that counts are never behind it.
        self._metrics = self._session.metrics()
        for request_id in dict.fromkeys(sequence.request_id for sequence in moved):
            handle = self._handles[request_id]
            handle.publish()
            if all(sequence.finished for sequence in handle.sequences):
                del self._handles[request_id]

    def _fail(self, error: Exception) -> None:
        """A forward failed: every request under way gets the error; later ones start afresh."""
        failed, self._handles = self._handles, {}
        for request_id in failed:
            self._session.end(request_id, "error")
        # What the failed forward left in the cache is not known.
        self._session.forget_blocks()
        self._metrics = self._session.metrics()
        for handle in failed.values():
            handle.fail(error)
