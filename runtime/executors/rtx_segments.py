"""The segment engines of TensorRT-RTX: loaded once, with an execution context per shape.

A graph keeps the state that its context had at capture, so a context serves one shape for good. All
contexts run in turn on one stream and share one scratch buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trt_resa.contract import LOGIT_ROWS
from trt_resa.errors import EngineError
from trt_resa.network import Segment
from trt_resa.runtime.executors.activations import Activations
from trt_resa.runtime.executors.buckets import Buckets, ForwardShape
from trt_resa.values import ValueSpec


class RtxSegments:
    """Runs segment i with ``enqueue(i, shape, stream)`` after ``prepare(shape)``.

    ``files``: one engine per segment. Tensors are bound in the order in which the segment names
    them, which is the order in which the builder declared them. Raises EngineError when a file does
    not load or has other tensors than its segment.
    """

    def __init__(
        self, files: Sequence[Path], segments: Sequence[Segment], specs: dict[str, ValueSpec]
    ) -> None:
        from trt_resa.rtx import create_runtime_cache, load_engine

        self._segments, self._specs = segments, specs
        self._engines = [load_engine(file) for file in files]
        self._names = [
            _bound_names(engine, segment, file)
            for engine, segment, file in zip(self._engines, segments, files, strict=True)
        ]
        self._cache = create_runtime_cache(self._engines[0])
        self._contexts: dict[tuple[int, int, int], Any] = {}
        self._scratch: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._engines)

    def bind(self, activations: Activations, buckets: Buckets) -> None:
        """Say where values stand; allocates the scratch buffer."""
        self._activations, self._buckets = activations, buckets
        size = max(engine.device_memory_size_v2 for engine in self._engines)
        device = next(iter(activations.tensors.values())).device
        self._scratch = torch.empty(max(size, 1), dtype=torch.uint8, device=device)

    def prepare(self, shape: ForwardShape, stream: torch.cuda.Stream) -> None:
        """Make the contexts of ``shape``, which compiles kernels where none fit yet."""
        for index in range(len(self._engines)):
            key = self._key(index, shape)
            if key is not None and key not in self._contexts:
                self._contexts[key] = self._context(index, shape, stream)

    def enqueue(self, index: int, shape: ForwardShape, stream: torch.cuda.Stream) -> None:
        key = self._key(index, shape)
        if key is not None and not self._contexts[key].execute_async_v3(stream.cuda_stream):
            raise EngineError(f"TensorRT-RTX refused to run segment {index} for {shape}")

    def _key(self, index: int, shape: ForwardShape) -> tuple[int, int, int] | None:
        """None: the segment has nothing to do, since nobody wants its logits."""
        if LOGIT_ROWS not in self._segments[index].inputs:
            return index, shape.rows, 0
        return (index, shape.rows, shape.logit_rows) if shape.logit_rows else None

    def _context(self, index: int, shape: ForwardShape, stream: torch.cuda.Stream) -> Any:
        from trt_resa.rtx import create_context

        segment, engine = self._segments[index], self._engines[index]
        assert self._scratch is not None
        context = create_context(engine, self._cache, own_scratch=False)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        profile = self._buckets.profile(shape.rows)
        done = context.set_optimization_profile_async(profile, stream.cuda_stream)
        rows = {"T": shape.rows, "R": shape.logit_rows}
        for name, bound in zip(
            (*segment.inputs, *segment.outputs), self._names[index], strict=True
        ):
            spec = self._specs[name]
            if name in segment.inputs:
                size = tuple(rows.get(s) or int(s) for s in spec.shape)
                done &= context.set_input_shape(bound, size)
            done &= context.set_tensor_address(bound, self._activations.address(name))
        if not done:
            raise EngineError(
                f"segment {index} does not take {shape}; build the engine again with trt-resa "
                "build-engine"
            )
        return context


def _bound_names(engine: Any, segment: Segment, file: Path) -> tuple[str, ...]:
    """Names of the engine's tensors, inputs then outputs, in the order of the segment's values."""
    from trt_resa.rtx import trt

    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs = [n for n in names if n not in inputs]
    if (len(inputs), len(outputs)) != (len(segment.inputs), len(segment.outputs)):
        raise EngineError(
            f"{file} has the tensors {', '.join(names)}, but its segment has "
            f"{', '.join((*segment.inputs, *segment.outputs))}; build the engine again with "
            "trt-resa build-engine"
        )
    return (*inputs, *outputs)
