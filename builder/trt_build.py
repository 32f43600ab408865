"""What building an engine takes in either flavour of TensorRT: profiles, streaming, interrupts.

``trt`` is the module ``tensorrt`` or ``tensorrt_rtx``, ``log`` the one log made for it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trt_resa import contract
from trt_resa.contract import TensorSpec
from trt_resa.errors import EngineError
from trt_resa.values import ValueSpec

#: Rows of a dense pass that its kernels are chosen for; a longer chunk fills the GPU just as well.
_DENSE_OPTIMUM = 512

#: (least, best, most) of each dynamic size, by its symbol.
Ranges = Mapping[str, tuple[int, int, int]]


def row_ranges(
    max_batch_size: int, max_num_tokens: int, rectify_interval: int
) -> tuple[dict[str, tuple[int, int, int]], dict[str, tuple[int, int, int]]]:
    """Ranges of T and R, per profile; ``trt_resa.builder.rtx`` explains them."""
    few = min(contract.max_logit_rows(max_batch_size, rectify_interval), max_num_tokens)
    rows = {"R": (0, max_batch_size, few)}
    dense = (1, min(_DENSE_OPTIMUM, max_num_tokens), max_num_tokens)
    return {"T": (1, max_batch_size, few), **rows}, {"T": dense, **rows}


def add_profiles(
    builder: Any, config: Any, inputs: Iterable[ValueSpec | TensorSpec], profiles: Sequence[Ranges]
) -> None:
    specs = list(inputs)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for spec in specs:
            sizes = [(int(s),) * 3 if s.isdigit() else ranges[s] for s in spec.shape]
            profile.set_shape(spec.name, *zip(*sizes, strict=True))
        config.add_optimization_profile(profile)


def write_engine(
    trt: Any, log: Any, builder: Any, network: Any, config: Any, path: Path, way_out: str
) -> None:
    """Build the engine into ``path``.

    Raises EngineError with TensorRT's own words, and ``way_out``, when it builds none. What a
    signal raises comes after the build has stopped.
    """
    with path.open("wb") as file, signals_deferred() as pending:
        writer = _writer(trt, file)
        config.progress_monitor = monitor(trt, pending)
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error is not None:
        raise EngineError(f"{path} cannot be written ({writer.error}); free some space")
    if not built:
        raise failure(trt, path, log.take_errors() or "it gave no reason", way_out)


def failure(trt: Any, path: Path, reason: str, way_out: str) -> EngineError:
    name = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[trt.__name__]
    return EngineError(f"{name} {trt.__version__} could not build {path.name}: {reason}; {way_out}")


def _writer(trt: Any, file: BinaryIO) -> Any:
    """Streams the engine to a file, so that memory never holds all of it a second time."""

    class Writer(trt.IStreamWriter):
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()


def monitor(trt: Any, pending: list[int]) -> Any:
    """Stops a build at its next step once a signal is pending."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not pending

    return Monitor()


@contextlib.contextmanager
def signals_deferred() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it yields, and raises the first when it ends.

    A Python handler that raises inside one of TensorRT's callbacks would unwind C++ frames that
    allow no exception, and end the process without any clean-up.
    """
    pending: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        # None: set by code outside Python. An ignored signal stays ignored.
        if signal.getsignal(number) not in (None, signal.SIG_IGN):
            handlers[number] = signal.signal(number, lambda caught, _: pending.append(caught))
    try:
        yield pending
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
