"""Emits the nodes of a network as layers of a strongly typed TensorRT network.

Written once for both flavours: ``trt`` is the module ``tensorrt`` or ``tensorrt_rtx``. Between
layers activations have the types of ``trt_resa.values``; inside, RMS norm, SwiGLU and the sums of
an INT4 linear's offsets are computed in fp32, which costs nothing since they fuse into one kernel.

TensorRT may add up a GEMM of fp16 in fp16. Where its inputs are cast to fp32 and its result back,
it makes one kernel of that which reads fp16 and adds up in fp32. The cast back belongs to the
pattern: without it TensorRT stores the weights in fp32. So the result of a wide linear is cast back
and forth, and TensorRT leaves that out where it can, as at the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from trt_resa.contract import TensorSpec
from trt_resa.network import INT4_BLOCK, Node
from trt_resa.values import ValueSpec, is_wide, linear_size

Tensor = Any  # trt.ITensor; the bindings carry no types

#: Element types that have one name in torch, in TensorRT and here.
_TORCH_TYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.int64: "int64",
}

_COLUMNS = 1 << 1  # axis mask of a [rows, columns] tensor's columns


class Layers:
    """Adds inputs, nodes and outputs to ``network``; all keep the names of their values.

    TensorRT holds pointers to the constants and copies nothing, so this object (which owns the
    tensors it was given and those it made) must outlive the build.
    """

    def __init__(self, trt: Any, network: Any, weights: Mapping[str, torch.Tensor]) -> None:
        self._trt = trt
        self._network = network
        self._weights = weights
        self._alive: list[Any] = []
        self._values: dict[str, Tensor] = {}

    def add_inputs(self, specs: Iterable[ValueSpec | TensorSpec]) -> None:
        """A size that is no number is dynamic, and carries its symbol as its name."""
        for spec in specs:
            shape = tuple(int(size) if size.isdigit() else -1 for size in spec.shape)
            tensor = self._network.add_input(spec.name, getattr(self._trt, spec.dtype), shape)
            for index, size in enumerate(spec.shape):
                if not size.isdigit():
                    tensor.set_dimension_name(index, size)
            self._values[spec.name] = tensor

    def add_nodes(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            inputs = [self._values[name] for name in node.inputs]
            first_layer = self._network.num_layers
            self._values[node.output] = getattr(self, f"_{node.op}")(node, inputs)
            for index in range(first_layer, self._network.num_layers):
                layer = self._network.get_layer(index)
                layer.name = f"{node.output}/{index - first_layer}:{layer.type.name.lower()}"

    def mark_outputs(self, names: Iterable[str]) -> None:
        for name in names:
            self._values[name].name = name
            self._network.mark_output(self._values[name])

    def _embedding(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return self._widened(
            node, self._output("gather", self._weight(node, "weight"), inputs[0], 0)
        )

    def _rms_norm(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        x = self._cast(inputs[0], self._trt.float32)
        square = self._elementwise("PROD", x, x)
        mean = self._output("reduce", square, self._trt.ReduceOperation.AVG, _COLUMNS, True)
        eps = self._constant(torch.tensor([[float(node.attributes["eps"])]]))
        rms = self._output(
            "unary", self._elementwise("SUM", mean, eps), self._trt.UnaryOperation.SQRT
        )
        weight = self._weights[node.weights["weight"].name]
        gain = self._constant(weight.float()[None])
        y = self._elementwise("PROD", self._elementwise("DIV", x, rms), gain)
        return self._cast(y, self._type_of(weight))

    def _linear(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        x = inputs[0]
        if "qweight" in node.weights:
            y = self._int4_product(node, x)
        else:
            y = self._plain_product(x, self._weight(node, "weight"))
        if "bias" in node.weights:
            bias = self._constant(self._weights[node.weights["bias"].name][None])
            y = self._elementwise("SUM", y, bias)
        return self._widened(node, y)

    def _plain_product(self, x: Tensor, w: Tensor) -> Tensor:
        """x @ w.T with its sums in fp32."""
        dtype, transpose = x.dtype, self._trt.MatrixOperation.TRANSPOSE
        if dtype != self._trt.float16:  # of the others none is added up in less than fp32
            return self._product(x, w, transpose)
        x, w = (self._cast(tensor, self._trt.float32) for tensor in (x, w))
        return self._cast(self._product(x, w, transpose), dtype)

    def _int4_product(self, node: Node, x: Tensor) -> Tensor:
        """x @ (q * scales + offsets), the offsets outside the weight-only GEMM.

        Within a block of 128 rows of W.T an offset multiplies the plain sum of x, so its share is
        blocksum(x) @ offsets. The mean is taken in place of the sum and the offsets grow by the
        same 128, a power of two and thus exact: a sum of 128 values can leave fp16's range.
        """
        k, n = linear_size(node)
        packed = self._weights[node.weights["qweight"].name]
        q = self._constant(packed, self._trt.int4, (k, n))
        w = self._output("dequantize", q, self._weight(node, "scales"), x.dtype)
        y = self._product(x, w, self._trt.MatrixOperation.NONE)
        if "offsets" in node.weights:
            blocks = self._network.add_shuffle(self._cast(x, self._trt.float32))
            blocks.reshape_dims = (0, k // INT4_BLOCK, INT4_BLOCK)
            means = self._output(
                "reduce", blocks.get_output(0), self._trt.ReduceOperation.AVG, 1 << 2, False
            )
            offsets = self._constant(self._weights[node.weights["offsets"].name] * INT4_BLOCK)
            share = self._product(
                self._cast(means, x.dtype), offsets, self._trt.MatrixOperation.NONE
            )
            y = self._elementwise("SUM", y, share)
        return y

    def _swiglu(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        x = inputs[0]
        half = x.shape[1] // 2
        rows = self._output("slice", self._output("shape", x), (0,), (1,), (1,))
        columns = self._constant(torch.tensor([half]))
        size = self._output("concatenation", [rows, columns])
        gate, up = (
            self._cast(self._columns_from(x, start, size), self._trt.float32) for start in (0, half)
        )
        sigmoid = self._output("activation", gate, self._trt.ActivationType.SIGMOID)
        y = self._elementwise("PROD", self._elementwise("PROD", gate, sigmoid), up)
        return self._cast(y, x.dtype)

    def _columns_from(self, x: Tensor, start: int, size: Tensor) -> Tensor:
        layer = self._network.add_slice(x, (0, start), (0, 0), (1, 1))
        layer.set_input(2, size)  # the number of rows is known at run time alone
        return layer.get_output(0)

    def _add(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return self._elementwise("SUM", *inputs)

    def _gather_rows(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return self._output("gather", *inputs, 0)

    def _widened(self, node: Node, y: Tensor) -> Tensor:
        return self._cast(y, self._trt.float32) if is_wide(node) else y

    def _output(self, layer: str, *arguments: Any) -> Tensor:
        return getattr(self._network, f"add_{layer}")(*arguments).get_output(0)

    def _elementwise(self, operation: str, x: Tensor, y: Tensor) -> Tensor:
        return self._output("elementwise", x, y, getattr(self._trt.ElementWiseOperation, operation))

    def _cast(self, x: Tensor, dtype: Any) -> Tensor:
        return self._output("cast", x, dtype)

    def _product(self, x: Tensor, w: Tensor, w_operation: Any) -> Tensor:
        return self._output("matrix_multiply", x, self._trt.MatrixOperation.NONE, w, w_operation)

    def _weight(self, node: Node, role: str) -> Tensor:
        return self._constant(self._weights[node.weights[role].name])

    def _constant(
        self, tensor: torch.Tensor, dtype: Any = None, shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """A constant over the tensor's own memory; ``dtype`` and ``shape`` where packed."""
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        shape = tuple(tensor.shape) if shape is None else shape
        dtype = self._type_of(tensor) if dtype is None else dtype
        weights = self._trt.Weights(dtype, tensor.data_ptr(), math.prod(shape))
        return self._output("constant", shape, weights)

    def _type_of(self, tensor: torch.Tensor) -> Any:
        return getattr(self._trt, _TORCH_TYPES[tensor.dtype])
