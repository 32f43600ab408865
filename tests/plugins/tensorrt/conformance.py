"""The conformance host from Python: the plugin's interface, one function each."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.plugins.tensorrt.fields import KINDS

FLOAT, HALF, INT8, INT32, BF16, INT64 = 0, 1, 2, 3, 7, 8  # nvinfer1::DataType

INPUTS = (
    "qkv",
    "position_ids",
    "cu_query_lens",
    "kv_lens",
    "block_table",
    "phase",
    "kv_pool",
    "summary_pool",
    "inv_freq",
    "q_norm",
    "k_norm",
)


class Tensor(ctypes.Structure):
    """``conformance_tensor``."""

    _fields_ = [("type", ctypes.c_int32), ("rank", ctypes.c_int32), ("dims", ctypes.c_int64 * 8)]

    @classmethod
    def of(cls, kind: int, shape: Sequence[int]) -> Tensor:
        return cls(kind, len(shape), (ctypes.c_int64 * 8)(*shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dims[: self.rank])


@dataclass(frozen=True)
class Shapes:
    """Extents of a call, and the tensors that TensorRT would describe it by."""

    rows: int = 8
    batch: int = 8
    blocks: int = 512
    phase: int = 0
    layers: int = 28
    q_heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    rotary_dim: int = 128
    norm: bool = False
    model_type: int = HALF

    @property
    def num_inputs(self) -> int:
        return 11 if self.norm else 9

    def tensors(self) -> list[Tensor]:
        """Inputs, then the output."""
        columns = (self.q_heads + 2 * self.kv_heads) * self.head_dim
        norms = [Tensor.of(self.model_type, [self.head_dim])] * 2
        return [
            Tensor.of(self.model_type, [self.rows, columns]),
            Tensor.of(INT32, [self.rows]),
            Tensor.of(INT32, [self.batch + 1]),
            Tensor.of(INT32, [self.batch]),
            Tensor.of(INT32, [self.batch, self.blocks]),
            Tensor.of(INT8, [self.phase]),
            Tensor.of(INT64, [self.layers]),
            Tensor.of(INT64, [self.layers]),
            Tensor.of(FLOAT, [self.rotary_dim // 2]),
            *(norms if self.norm else []),
            Tensor.of(self.model_type, [self.rows, self.q_heads * self.head_dim]),
        ]


def array(tensors: Sequence[Tensor]) -> ctypes.Array[Tensor]:
    return (Tensor * len(tensors))(*tensors)


class Plugin:
    """An IPluginV3, destroyed with its owner."""

    def __init__(self, host: Host, pointer: int) -> None:
        self._host = host
        self._lib = host.lib
        self.pointer = pointer

    def __del__(self) -> None:
        self._lib.conformance_destroy(ctypes.c_void_p(self.pointer))

    def _call(self, name: str, *arguments: object) -> int:
        function = getattr(self._lib, f"conformance_{name}")
        return function(ctypes.c_void_p(self.pointer), *arguments)

    def identity(self) -> str:
        self._lib.conformance_identity.restype = ctypes.c_char_p
        text = self._lib.conformance_identity(ctypes.c_void_p(self.pointer))
        return text.decode()

    def clone(self) -> Plugin | None:
        return self._host.own(self._call("clone"))

    def attach(self) -> Plugin | None:
        return self._host.own(self._call("attach"))

    def accepts(self, position: int, tensors: Sequence[Tensor], formats: Sequence[int]) -> bool:
        numbers = (ctypes.c_int32 * len(formats))(*formats)
        count = len(tensors) - 1
        return bool(self._call("format", position, array(tensors), numbers, count))

    def output(self, tensors: Sequence[Tensor]) -> Tensor | None:
        made = Tensor()
        status = self._call("output", array(tensors), len(tensors) - 1, ctypes.byref(made))
        return made if status == 0 else None

    def configure(self, largest: Sequence[Tensor]) -> bool:
        return self._call("configure", array(largest), len(largest) - 1) == 0

    def workspace(self, largest: Sequence[Tensor]) -> int:
        return self._call("workspace", array(largest), len(largest) - 1)

    def shape(self, tensors: Sequence[Tensor]) -> bool:
        return self._call("shape", array(tensors), len(tensors) - 1) == 0

    def enqueue(
        self,
        tensors: Sequence[Tensor],
        inputs: Sequence[int],
        output: int,
        workspace: int,
        stream: int,
    ) -> bool:
        pointers = (ctypes.c_void_p * len(inputs))(*inputs)
        addresses = (ctypes.c_void_p(address) for address in (output, workspace, stream))
        return self._call("enqueue", array(tensors), len(tensors) - 1, pointers, *addresses) == 0


class Host:
    """A TensorRT of ``version``, as getInferLibVersion gives it, that has loaded the plugin."""

    def __init__(self, library: Path, plugin: Path, version: int) -> None:
        self.lib = ctypes.CDLL(str(library))
        for name in ("open", "create", "reload", "clone", "attach"):
            getattr(self.lib, f"conformance_{name}").restype = ctypes.c_void_p
        self.lib.conformance_messages.restype = ctypes.c_char_p
        self.lib.conformance_workspace.restype = ctypes.c_uint64
        self._creator = self.lib.conformance_open(str(plugin).encode(), version)
        assert self._creator, self.messages()

    def messages(self) -> str:
        """What the plugin logged since the last call."""
        return self.lib.conformance_messages().decode()

    def own(self, pointer: int | None) -> Plugin | None:
        return Plugin(self, pointer) if pointer else None

    def create(self, fields: Mapping[str, int | float]) -> Plugin | None:
        count = len(fields)
        names = (ctypes.c_char_p * count)(*(name.encode() for name in fields))
        values = (ctypes.c_double * count)(*fields.values())
        kinds = (ctypes.c_int32 * count)(*(KINDS[name] == "float32" for name in fields))
        creator = ctypes.c_void_p(self._creator)
        return self.own(self.lib.conformance_create(creator, count, names, values, kinds))

    def reload(self, plugin: Plugin) -> Plugin | None:
        """Through the serialised fields, as an engine keeps them."""
        creator, pointer = ctypes.c_void_p(self._creator), ctypes.c_void_p(plugin.pointer)
        return self.own(self.lib.conformance_reload(creator, pointer))
