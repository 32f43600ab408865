"""A module ``tensorrt`` that also runs engines, on the host: the builder's stand-in and more.

An engine has the tensors and profiles that the builder declared. It is run as TensorRT would run
it, from nothing but extents and addresses, by the torch executor over the cache that the addresses
name. What TensorRT forbids fails an assertion, what it refuses returns False.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import tensorrt_rtx
import torch

from tests.builder import tensorrt_stand_in
from trt_resa import contract
from trt_resa.config import KvCacheConfig
from trt_resa.contract import Phase, Step
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.forward_program import ForwardProgram
from trt_resa.runtime.executors.torch_executor import TorchExecutor

STREAM = 77
SCRATCH = 4096
WEIGHTS = 1000
_TORCH_TYPES = {
    tensorrt_rtx.int32: torch.int32,
    tensorrt_rtx.int8: torch.int8,
    tensorrt_rtx.int64: torch.int64,
    tensorrt_rtx.float32: torch.float32,
}


class RecordingBuilder(tensorrt_stand_in.Builder):
    def create_optimization_profile(self) -> Any:
        self.profiles = [*getattr(self, "profiles", ()), self._real.create_optimization_profile()]
        return self.profiles[-1]


class StandIn(tensorrt_stand_in.StandIn):
    """``engines`` are those that were loaded with it; each loads what was built last.

    ``reference``: the directory of that engine, whose torch weights give the logits.
    ``replaying``: a graph is replayed, so nothing may be set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engines: list[Engine] = []
        self.reference: EngineDirectory | None = None
        self.replaying = False
        self.streamable = self.stripped = 0

    def Builder(self, log: Any) -> RecordingBuilder:
        self.builders.append(RecordingBuilder(log))
        return self.builders[-1]

    def Runtime(self, log: Any) -> Any:
        return _Runtime(self)


@dataclass
class _Runtime:
    module: StandIn

    def deserialize_cuda_engine(self, content: Any) -> Engine:
        assert len(bytes(content)) > 10_000
        self.module.engines.append(Engine(self.module))
        return self.module.engines[-1]


@dataclass
class Tensor:
    mode: Any
    dtype: Any


class Engine:
    """Its public names are those of ``ICudaEngine``."""

    def __init__(self, module: StandIn) -> None:
        self._module = module
        builder = module.builders[-1]
        network, self._profiles = builder.networks[-1], builder.profiles
        modes = tensorrt_rtx.TensorIOMode
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        self._tensors = {t.name: Tensor(modes.INPUT, t.dtype) for t in inputs}
        self._tensors |= {t.name: Tensor(modes.OUTPUT, t.dtype) for t in outputs}
        self._decoder = Decoder(module.reference)
        self._contexts: list[Context] = []
        self._budget = module.streamable
        self.device_memory_size_v2 = SCRATCH
        self.streamable_weights_size = module.streamable
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name].mode

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[profile].get_shape(name)]

    def get_engine_stat(self, stat: Any) -> int:
        assert stat == tensorrt_rtx.EngineStat.STRIPPED_WEIGHTS_SIZE
        return self._module.stripped or -1

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        assert not self._contexts, "the budget is fixed once there are contexts"
        if not 0 <= budget <= self.streamable_weights_size:
            raise RuntimeError("Failed to set weight streaming budget!")
        self._budget = budget

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        self._contexts.append(Context(self))
        return self._contexts[-1]


@dataclass
class Context:
    """Its public names are those of ``IExecutionContext``."""

    _engine: Engine
    _calls: list[str] = field(default_factory=list)
    _profile: int | None = None
    _memory: tuple[int, int] | None = None
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _addresses: dict[str, int] = field(default_factory=dict)
    #: Extents of every forward that it ran.
    _ran: list[dict[str, tuple[int, ...]]] = field(default_factory=list)

    def _called(self, name: str) -> None:
        if name != "execute_async_v3":
            assert not self._engine._module.replaying, f"{name} in a replay"
        if self._calls[-1:] != [name]:
            self._calls.append(name)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._called("set_device_memory")
        assert memory
        assert size >= self._engine.device_memory_size_v2
        self._memory = memory, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._called("set_optimization_profile_async")
        assert stream == STREAM
        self._profile, self._shapes = profile, {}
        return profile < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._called("set_input_shape")
        assert self._profile is not None, "shapes come after the profile"
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._called("set_tensor_address")
        self._addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._called("execute_async_v3")
        assert stream_handle == STREAM
        assert self._memory is not None
        tensors = self._engine._tensors
        inputs = {n for n, t in tensors.items() if t.mode == tensorrt_rtx.TensorIOMode.INPUT}
        assert (set(self._shapes), set(self._addresses)) == (inputs, set(tensors))
        self._ran.append(dict(self._shapes))
        values = {
            name: view(self._addresses[name], shape, _TORCH_TYPES[tensors[name].dtype])
            for name, shape in self._shapes.items()
        }
        size = len(values[contract.LOGIT_ROWS]), self._engine._decoder.model.vocab_size
        logits = view(self._addresses[contract.LOGITS], size, torch.float32)
        self._engine._decoder.run(values, logits)
        return True


def view(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The memory at an address as a tensor."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


class Decoder(TorchExecutor):
    """The torch executor over a cache that it finds through ``kv_pool`` and ``summary_pool``."""

    def __init__(self, engine: EngineDirectory) -> None:
        build, sparse = engine.config.build_config, engine.config.sparse_attention_config
        one = Limits(1, sparse.block_size, 1, 1, 1)
        dtype = getattr(torch, build.dtype)
        super().__init__(engine, sparse, KvCacheConfig(), one, torch.device("cpu"), dtype)

    def run(self, inputs: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
        """Passes over padding as the kernels do: rows and sequences without tokens."""
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        bounds, kv_lens = arrays[contract.CU_QUERY_LENS], arrays[contract.KV_LENS]
        batch = int((kv_lens > 0).sum())
        rows = int(bounds[batch])
        assert (kv_lens[:batch] > 0).all()
        assert (bounds[batch:] == rows).all()
        assert (arrays[contract.LOGIT_ROWS] < rows).all()
        blocks = int(arrays[contract.BLOCK_TABLE].max()) + 1
        self.kv = self._pools(inputs[contract.KV_POOL], blocks, self.kv)
        self.summary = self._pools(inputs[contract.SUMMARY_POOL], blocks, self.summary)
        step = Step(
            phase=Phase(len(arrays[contract.PHASE])),
            input_ids=arrays[contract.INPUT_IDS][:rows],
            position_ids=arrays[contract.POSITION_IDS][:rows],
            cu_query_lens=bounds[: batch + 1],
            kv_lens=kv_lens[:batch],
            block_table=arrays[contract.BLOCK_TABLE][:batch],
            logit_rows=arrays[contract.LOGIT_ROWS],
        )
        logits.copy_(self.forward(step))

    def _pools(
        self, addresses: torch.Tensor, blocks: int, like: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        assert len(addresses) == len(like)
        shape = (blocks, *like[0].shape[1:])
        return [view(address, shape, self.dtype) for address in addresses.tolist()]


class _Stream:
    cuda_stream = STREAM

    def synchronize(self) -> None:
        pass


class _Event:
    def record(self, stream: _Stream) -> None:
        assert stream.cuda_stream == STREAM

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


def put_cuda_on_the_host(patch: pytest.MonkeyPatch, module: StandIn) -> None:
    """Streams that run at once, and graphs that launch again but may set nothing."""
    empty = torch.empty

    class Graph:
        def __init__(self, program: ForwardProgram) -> None:
            self._program = program

        def replay(self) -> None:
            module.replaying = True
            try:
                self._program._enqueue()
            finally:
                module.replaying = False

    def captured(program: ForwardProgram) -> Graph:
        program.captures += 1
        return Graph(program)

    patch.setattr(torch.cuda, "Stream", lambda device: _Stream())
    patch.setattr(torch.cuda, "Event", _Event)
    patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    patch.setattr(torch.cuda, "synchronize", lambda device: None)
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    patch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    patch.setattr(torch, "empty", lambda *size, pin_memory=False, **rest: empty(*size, **rest))
    patch.setattr(ForwardProgram, "_captured", captured)
