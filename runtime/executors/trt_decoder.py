"""The engine of a whole decoder (data-centre TensorRT), bound to the tensors of the contract.

A graph keeps the state that its context had at capture, so each captured shape has a context for
good. Shapes that are launched one by one share a context per optimisation profile, which follows
their extents. All contexts run in turn on one stream and share one scratch buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trt_resa.contract import INPUTS, OUTPUTS, PHASE, Phase, TensorSpec
from trt_resa.errors import EngineError
from trt_resa.runtime.executors.buckets import Buckets, ForwardShape

#: Optimisation profiles: few rows, which serve sparse steps and windows, and many.
PROFILES = 2


def extents(shape: ForwardShape, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each input in a forward, by its name.

    ``tensors`` hold the contract's tensors at their largest; what no forward changes (layers,
    blocks per sequence) is read off them.
    """
    sizes = {
        "T": shape.rows,
        "B": shape.batch,
        "B+1": shape.batch + 1,
        "R": shape.logit_rows,
        "P": shape.phase.value,
    }
    return {
        spec.name: tuple(
            sizes.get(symbol, tensors[spec.name].shape[axis])
            for axis, symbol in enumerate(spec.shape)
        )
        for spec in INPUTS
    }


class TrtDecoder:
    """Runs the decoder with ``enqueue(shape, stream)`` after ``prepare(shape, ...)``.

    ``engine``: a ``trt.ICudaEngine`` read from ``file``. ``tensors``: every tensor of the contract
    on the device, as large as the largest forward; a forward uses their fronts, and their addresses
    never change. Raises EngineError when the engine has other tensors than the contract, or when a
    forward that ``buckets`` allow is outside its profiles.
    """

    def __init__(
        self, engine: Any, tensors: Mapping[str, torch.Tensor], buckets: Buckets, file: Path
    ) -> None:
        self._engine, self._tensors, self._buckets, self._file = engine, tensors, buckets, file
        self._check_tensors()
        self._check_profiles()
        size = max(engine.device_memory_size_v2, 1)
        self._scratch = torch.empty(size, dtype=torch.uint8, device=tensors[PHASE].device)
        self._captured: dict[ForwardShape, Any] = {}
        self._shared: dict[int, Any] = {}
        self._shared_shapes: dict[int, ForwardShape] = {}

    def prepare(self, shape: ForwardShape, captured: bool, stream: torch.cuda.Stream) -> None:
        """Make the context of ``shape``: one for good where its forward will be ``captured``."""
        profile = self._buckets.profile(shape.rows)
        if captured:
            if shape not in self._captured:
                context = self._context(profile, stream)
                self._set_shape(context, shape)
                self._captured[shape] = context
        elif profile not in self._shared:
            self._shared[profile] = self._context(profile, stream)

    def enqueue(self, shape: ForwardShape, stream: torch.cuda.Stream) -> None:
        context = self._captured.get(shape)
        if context is None:
            profile = self._buckets.profile(shape.rows)
            context = self._shared[profile]
            if self._shared_shapes.get(profile) != shape:
                self._set_shape(context, shape)
                self._shared_shapes[profile] = shape
        if not context.execute_async_v3(stream.cuda_stream):
            self._fail(f"refused to run {self._file} for {shape}")

    def _context(self, profile: int, stream: torch.cuda.Stream) -> Any:
        from trt_resa.trt import create_context

        context = create_context(self._engine)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        if not context.set_optimization_profile_async(profile, stream.cuda_stream):
            self._fail(f"refused optimisation profile {profile} of {self._file}")
        for spec in (*INPUTS, *OUTPUTS):
            if not context.set_tensor_address(spec.name, self._tensors[spec.name].data_ptr()):
                self._fail(f"refused the address of {spec.name}")
        return context

    def _set_shape(self, context: Any, shape: ForwardShape) -> None:
        for name, size in extents(shape, self._tensors).items():
            if not context.set_input_shape(name, size):
                self._fail(f"refused {name} {list(size)} in {self._file}")

    def _fail(self, what: str) -> None:
        from trt_resa.trt import LOG, VERSION

        reason = LOG.take_errors() or "it gave no reason"
        raise EngineError(f"TensorRT {VERSION} {what}: {reason}")

    def _check_tensors(self) -> None:
        """The engine's tensors are those of the contract, in names, directions and types."""
        from trt_resa.trt import trt

        engine = self._engine
        modes = ((INPUTS, trt.TensorIOMode.INPUT), (OUTPUTS, trt.TensorIOMode.OUTPUT))
        wanted = {
            spec.name: (mode, getattr(trt, spec.dtype)) for specs, mode in modes for spec in specs
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {n: (engine.get_tensor_mode(n), engine.get_tensor_dtype(n)) for n in names}
        if found != wanted:
            differs = {n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)}
            raise EngineError(
                f"{self._file} has other tensors than a decoder of this trt_resa (the first that "
                f"differs is {min(differs)}); build it again with trt-resa build-engine"
            )

    def _check_profiles(self) -> None:
        """Every forward that the buckets allow lies inside its profile."""
        if self._engine.num_optimization_profiles != PROFILES:
            raise EngineError(
                f"{self._file} has {self._engine.num_optimization_profiles} optimisation profiles "
                f"and {PROFILES} are needed; build it again with trt-resa build-engine"
            )
        limits = self._buckets.limits
        most_rows = (self._buckets.few_rows, limits.max_num_tokens)
        for profile, rows in enumerate(most_rows):
            if self._buckets.profile(rows) != profile:
                continue  # the limits leave nothing for it
            least_rows = 1 if profile == 0 else most_rows[0] + 1
            least = ForwardShape(Phase.SPARSE, least_rows, 1, 0)
            most = ForwardShape(Phase.DENSE, rows, limits.max_batch_size, limits.max_logit_rows)
            for spec in INPUTS:
                self._check_range(spec, profile, least, most)

    def _check_range(
        self, spec: TensorSpec, profile: int, least: ForwardShape, most: ForwardShape
    ) -> None:
        low, _, high = self._engine.get_tensor_profile_shape(spec.name, profile)
        small, large = (extents(s, self._tensors)[spec.name] for s in (least, most))
        sizes = zip(low, small, large, high, strict=True)
        if not all(a <= b and c <= d for a, b, c, d in sizes):
            raise EngineError(
                f"optimisation profile {profile} of {self._file} takes {spec.name} from "
                f"{list(low)} to {list(high)}, and up to {list(large)} can come; lower the limits "
                "or build it again with trt-resa build-engine"
            )
