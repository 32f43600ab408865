"""Builds the engine of one segment with TensorRT-RTX, ahead of time and without a GPU.

An engine has two optimisation profiles over T, its rows, and R, the rows whose logits are wanted:

=======  ==========================  ============  =================================
profile  T (least, best, most)       R             serves
=======  ==========================  ============  =================================
0        1, B, W                     0, B, W       sparse steps, windows
1        1, min(512, N), N           0, B, W       prefill chunks, larger passes
=======  ==========================  ============  =================================

B is max_batch_size, N max_num_tokens, and W ``contract.max_logit_rows``, the larger of B and
rectify_interval (at most N). A rectification or verification of one window has at most W rows; at
so few rows the time goes to reading the weights, as in a decode step, so it shares profile 0: a
forward takes profile 0 when its T is at most W. Several windows in one dense pass may have more
rows, and take profile 1.

R may be 0: a prefill chunk that is not the last, or a rectification whose logits nobody wants.
The last segment then computes nothing that is read, and the runtime should skip it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from trt_resa import contract
from trt_resa.builder.rtx_layers import SegmentLayers
from trt_resa.errors import EngineError
from trt_resa.network import Segment
from trt_resa.rtx import LOG, trt
from trt_resa.values import ValueSpec

#: Rows of a dense pass that its kernels are chosen for; a longer chunk fills the GPU just as well.
_DENSE_OPTIMUM = 512


@dataclass(frozen=True, kw_only=True)
class RtxOptions:
    """How to build: limits of the profiles, GPUs to target, what the engine inspector can list."""

    max_batch_size: int
    max_num_tokens: int
    rectify_interval: int
    compute_capabilities: tuple[str, ...]
    profiling_verbosity: str = "detailed"

    def profiles(self) -> tuple[dict[str, tuple[int, int, int]], ...]:
        """(minimum, optimum, maximum) of T and of R, per profile."""
        batch = self.max_batch_size
        few = min(contract.max_logit_rows(batch, self.rectify_interval), self.max_num_tokens)
        rows = {"R": (0, batch, few)}
        dense = (1, min(_DENSE_OPTIMUM, self.max_num_tokens), self.max_num_tokens)
        return {"T": (1, batch, few), **rows}, {"T": dense, **rows}


def build_segment(
    segment: Segment,
    weights: Mapping[str, torch.Tensor],
    specs: Mapping[str, ValueSpec],
    options: RtxOptions,
    path: Path,
) -> None:
    """Write the engine of ``segment`` to ``path``.

    ``weights`` by the names of the network, in the types it says; ``specs`` of every value that the
    segment reads. Raises EngineError with TensorRT's own words when it builds none.
    """
    LOG.take_errors()  # those of an earlier failure
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    layers = SegmentLayers(network, weights, specs)
    try:
        layers.add(segment)
    except (AttributeError, TypeError):  # a refused layer is None in the bindings
        reason = LOG.take_errors()
        if not reason:
            raise
        raise _failure(path, reason) from None
    config = _config(builder, segment, specs, options)
    with path.open("wb") as file, _signals_deferred() as pending:
        writer, monitor = _Writer(file), _Monitor(pending)
        config.progress_monitor = monitor
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error is not None:
        raise EngineError(f"{path} cannot be written ({writer.error}); free some space")
    if not built:
        raise _failure(path, LOG.take_errors() or "it gave no reason")


def _failure(path: Path, reason: str) -> EngineError:
    return EngineError(
        f"TensorRT-RTX {trt.__version__} could not build {path.name}: {reason}; build with "
        "--executors torch to run without it"
    )


def _config(
    builder: trt.Builder, segment: Segment, specs: Mapping[str, ValueSpec], options: RtxOptions
) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.profiling_verbosity = getattr(
        trt.ProfilingVerbosity, options.profiling_verbosity.upper()
    )
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, capability in enumerate(options.compute_capabilities):
        target = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if target is None or not config.set_compute_capability(target, index):
            raise EngineError(
                f"TensorRT-RTX {trt.__version__} cannot target compute capability {capability}; "
                "leave it out of --compute_capabilities"
            )
    for ranges in options.profiles():
        profile = builder.create_optimization_profile()
        for name in segment.inputs:
            spec = specs[name]
            columns = () if spec.columns is None else (spec.columns,)
            profile.set_shape(name, *((extent, *columns) for extent in ranges[spec.rows]))
        config.add_optimization_profile(profile)
    return config


class _Writer(trt.IStreamWriter):
    """Streams the engine to a file, so that memory never holds all of it a second time."""

    def __init__(self, file: BinaryIO) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            return 0


class _Monitor(trt.IProgressMonitor):
    """Stops a build at its next step once a signal is pending."""

    def __init__(self, pending: list[int]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._pending = pending

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        pass

    def phase_finish(self, phase_name: str) -> None:
        pass

    def step_complete(self, phase_name: str, step: int) -> bool:
        return not self._pending


@contextlib.contextmanager
def _signals_deferred() -> Iterator[list[int]]:
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
