"""One shape's forward as a list of launches: run one by one once, then as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

#: Enqueues work on the current stream.
Launch = Callable[[], None]


class ForwardProgram:
    """Runs ``launches`` in order on ``stream``.

    With ``capture`` the first run is followed by a capture, and every later one replays the graph;
    ``late``: the second run is, so that launches which come once leave no graph. A graph
    holds addresses and extents, so whatever changes from step to step must be contents of device
    memory. ``captures`` counts what was captured.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        stream: torch.cuda.Stream,
        pool: Any,
        capture: bool,
        late: bool = False,
    ) -> None:
        self._launches, self._stream, self._pool = launches, stream, pool
        self._capture, self._late = capture, late
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ran = False
        self.captures = 0

    def run(self) -> None:
        with torch.cuda.stream(self._stream):
            if self._graph is not None:
                self._graph.replay()
                return
            self._enqueue()
            # The capture takes the host's time while the GPU has these launches to run.
            if self._capture and (self._ran or not self._late):
                self._graph = self._captured()
            self._ran = True

    def run_eagerly(self) -> None:
        """The same launches without the graph."""
        with torch.cuda.stream(self._stream):
            self._enqueue()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Of launches on the current stream. Not by ``torch.cuda.graph``, which first waits for the
        GPU and empties PyTorch's caches: everyone's next token would come that much later."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            self._enqueue()
        finally:
            graph.capture_end()
        self.captures += 1
        return graph

    def _enqueue(self) -> None:
        for launch in self._launches:
            launch()
