"""The operators of ``trt_resa.network`` in plain torch, except attention.

``compile_node`` turns a node and its weights into a function of its input tensors; the weights are
brought to the executor's dtype once. Each result is computed in fp32 and rounded at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from trt_resa.int4 import Int4Weight, dequantize
from trt_resa.network import Node
from trt_resa.reference.rotary import rms_norm
from trt_resa.values import is_wide

Weights = Mapping[str, torch.Tensor]
Operator = Callable[..., torch.Tensor]


def compile_node(node: Node, weights: Weights) -> Operator:
    """``weights`` by role, on the executor's device; floating ones in its dtype."""
    return _COMPILERS[node.op](node, weights)


def _embedding(node: Node, weights: Weights) -> Operator:
    table = weights["weight"]
    if is_wide(node):
        return lambda ids: F.embedding(ids, table).float()
    return lambda ids: F.embedding(ids, table)


def _rms_norm(node: Node, weights: Weights) -> Operator:
    weight, eps = weights["weight"], float(node.attributes["eps"])
    return lambda x: rms_norm(x, weight, eps)


def _linear(node: Node, weights: Weights) -> Operator:
    bias = weights.get("bias")
    if "qweight" in weights:
        packed = Int4Weight(weights["qweight"], weights["scales"], weights.get("offsets"))
        weight = dequantize(packed).t().contiguous().to(packed.scales.dtype)
    else:
        weight = weights["weight"]
    wide = is_wide(node)

    def linear(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            return F.linear(x, weight, bias)
        y = _wide_product(x, weight)
        if bias is not None:
            y += bias
        return y if wide else y.to(x.dtype)

    return linear


def _wide_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T of 16-bit tensors in fp32, on a GPU by a GEMM that reads 16 bits."""
    if x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return F.linear(x.float(), weight.float())


def _swiglu(node: Node, weights: Weights) -> Operator:
    def swiglu(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return (F.silu(gate.float()) * up).to(x.dtype)

    return swiglu


def _add(node: Node, weights: Weights) -> Operator:
    return torch.add


def _gather_rows(node: Node, weights: Weights) -> Operator:
    return lambda x, rows: x[rows]


_COMPILERS: dict[str, Callable[[Node, Weights], Operator]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "swiglu": _swiglu,
    "add": _add,
    "gather_rows": _gather_rows,
}
