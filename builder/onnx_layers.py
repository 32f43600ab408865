"""Emits the nodes of a network as ONNX nodes, with attention as the plugin's node.

Only operators that TensorRT's parser has known for long are used: RMS norm and SwiGLU are spelled
out, with their insides in fp32, and fp16 products stand between casts (``trt_layers`` says why). An
INT4 linear is a DequantizeLinear with block scales; its offsets are added behind the product, since
TensorRT takes no zero points there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_resa import plugin_fields
from trt_resa.config import SparseAttentionConfig
from trt_resa.model_config import ModelConfig
from trt_resa.network import ATTENTION, INT4_BLOCK, Node, Weight
from trt_resa.rope import inverse_frequencies
from trt_resa.values import ValueSpec, is_wide, linear_size

TYPES = {
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
}


class Initializers(Protocol):
    """Stores the weights of the network beside the graph."""

    def weight(self, weight: Weight, scale: float = 1.0) -> str:
        """Name of the initializer with the weight's values times ``scale``, in its type."""
        ...

    def int4(self, weight: Weight) -> str:
        """Name of the INT4 initializer [K, N] of a ``qweight``."""
        ...


class OnnxLayers:
    """Collects nodes and small constants; a value of the network keeps its name."""

    def __init__(
        self,
        model: ModelConfig,
        sparse: SparseAttentionConfig,
        dtype: str,
        specs: Mapping[str, ValueSpec],
        initializers: Initializers,
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._model = model
        self._sparse = sparse
        self._dtype = dtype
        self._specs = specs
        self._initializers = initializers
        self._constant(
            plugin_fields.INV_FREQ, inverse_frequencies(model.rope)[0].numpy().astype(np.float32)
        )

    def add(self, node: Node) -> None:
        _EMITTERS[node.op](self, node)

    def _embedding(self, node: Node) -> None:
        table = self._initializers.weight(node.weights["weight"])
        self._emit("Gather", [table, node.inputs[0]], self._before_widening(node), axis=0)
        self._widen(node)

    def _rms_norm(self, node: Node) -> None:
        at = node.output
        eps = self._constant(f"{at}.eps", np.float32(node.attributes["eps"]))
        x = node.inputs[0]
        if self._specs[x].dtype != "float32":
            x = self._cast(x, "float32", f"{at}/x")
        square = self._emit("Mul", [x, x], f"{at}/square")
        mean = self._emit("ReduceMean", [square, self._last_axis()], f"{at}/mean", keepdims=1)
        rms = self._emit("Sqrt", [self._emit("Add", [mean, eps], f"{at}/biased")], f"{at}/rms")
        normed = self._emit("Div", [x, rms], f"{at}/normed")
        gain = self._cast(
            self._initializers.weight(node.weights["weight"]), "float32", f"{at}/gain"
        )
        self._narrow("Mul", [normed, gain], at)

    def _linear(self, node: Node) -> None:
        if "qweight" in node.weights:
            self._int4_linear(node)
            return
        x, at = node.inputs[0], self._before_widening(node)
        w, bias = self._initializers.weight(node.weights["weight"]), self._bias(node)
        if self._dtype == "float16":
            wide_x = self._cast(x, "float32", f"{at}/wide_x")
            wide_w = self._cast(w, "float32", f"{at}/wide_weight")
            y = self._emit("Gemm", [wide_x, wide_w], f"{at}/wide", transB=1)
            y = self._cast(y, "float16", f"{at}/product" if bias else at)
            self._sum_into(at, y, bias)
        else:
            self._emit("Gemm", [x, w, *bias], at, transB=1)
        self._widen(node)

    def _bias(self, node: Node) -> list[str]:
        return [self._initializers.weight(node.weights["bias"])] if "bias" in node.weights else []

    def _int4_linear(self, node: Node) -> None:
        x, at, weights = node.inputs[0], node.output, node.weights
        scales = self._initializers.weight(weights["scales"])
        w = self._emit(
            "DequantizeLinear",
            [self._initializers.int4(weights["qweight"]), scales],
            f"{at}/weight",
            axis=0,
            block_size=INT4_BLOCK,
        )
        terms = self._bias(node)
        if "offsets" in weights:
            terms.append(self._offsets_share(node))
        self._sum_into(at, self._emit("MatMul", [x, w], f"{at}/product" if terms else at), terms)

    def _offsets_share(self, node: Node) -> str:
        """What the offsets add: within a block of 128 rows of W.T, offset times the sum of x.

        The mean is taken in place of the sum and the offsets grow by the same 128, a power of two
        and thus exact: a sum of 128 values can leave fp16's range.
        """
        at, (k, _) = node.output, linear_size(node)
        shape = self._constant(f"{at}.blocks", np.array([0, k // INT4_BLOCK, INT4_BLOCK], np.int64))
        blocks = self._emit("Reshape", [node.inputs[0], shape], f"{at}/blocks")
        wide = self._cast(blocks, "float32", f"{at}/wide_blocks")
        means = self._emit("ReduceMean", [wide, self._last_axis()], f"{at}/means", keepdims=0)
        narrow = self._cast(means, self._dtype, f"{at}/narrow_means")
        offsets = self._initializers.weight(node.weights["offsets"], scale=float(INT4_BLOCK))
        return self._emit("MatMul", [narrow, offsets], f"{at}/offsets_share")

    def _swiglu(self, node: Node) -> None:
        at = node.output
        halves = [f"{at}/gate_half", f"{at}/up_half"]
        self._append("Split", [node.inputs[0]], halves, axis=1, num_outputs=2)
        gate = self._cast(halves[0], "float32", f"{at}/gate")
        up = self._cast(halves[1], "float32", f"{at}/up")
        sigmoid = self._emit("Sigmoid", [gate], f"{at}/sigmoid")
        silu = self._emit("Mul", [gate, sigmoid], f"{at}/silu")
        self._narrow("Mul", [silu, up], at)

    def _add(self, node: Node) -> None:
        self._emit("Add", node.inputs, node.output)

    def _gather_rows(self, node: Node) -> None:
        self._emit("Gather", node.inputs, node.output, axis=0)

    def _attention(self, node: Node) -> None:
        norms = [
            self._initializers.weight(node.weights[role])
            for role in plugin_fields.NORM_INPUTS
            if role in node.weights
        ]
        self._append(
            plugin_fields.PLUGIN_NAME,
            [node.inputs[0], *plugin_fields.INPUTS, *norms],
            [node.output],
            domain=plugin_fields.PLUGIN_NAMESPACE,
            **plugin_fields.field_values(node, self._model, self._sparse),
        )

    def _before_widening(self, node: Node) -> str:
        """Name of the node's result in the network's dtype."""
        widened = is_wide(node) and self._dtype != "float32"
        return f"{node.output}/narrow" if widened else node.output

    def _widen(self, node: Node) -> None:
        if (narrow := self._before_widening(node)) != node.output:
            self._cast(narrow, "float32", node.output)

    def _sum_into(self, output: str, first: str, terms: Sequence[str]) -> None:
        for index, term in enumerate(terms):
            last = index == len(terms) - 1
            first = self._emit("Add", [first, term], output if last else f"{output}/sum_{index}")

    def _narrow(self, op: str, inputs: Sequence[str], output: str) -> None:
        """``op`` in fp32, its result in the network's dtype."""
        if self._dtype == "float32":
            self._emit(op, inputs, output)
        else:
            self._cast(self._emit(op, inputs, f"{output}/wide"), self._dtype, output)

    def _cast(self, x: str, dtype: str, output: str) -> str:
        """``x``, which is in the network's dtype or fp32, in ``dtype``; no node where it is."""
        if self._dtype == "float32":
            return x
        return self._emit("Cast", [x], output, to=TYPES[dtype])

    def _last_axis(self) -> str:
        return self._constant("last_axis", np.array([-1], np.int64))

    def _constant(self, name: str, values: Any) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def _emit(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._append(op, inputs, [output], **attributes)
        return output

    def _append(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attrs: Any
    ) -> None:
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attrs)
        )


_EMITTERS: Mapping[str, Callable[[OnnxLayers, Node], None]] = {
    "embedding": OnnxLayers._embedding,
    "rms_norm": OnnxLayers._rms_norm,
    "linear": OnnxLayers._linear,
    "swiglu": OnnxLayers._swiglu,
    "add": OnnxLayers._add,
    "gather_rows": OnnxLayers._gather_rows,
    ATTENTION: OnnxLayers._attention,
}
