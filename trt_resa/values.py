"""Shape and type of every value of a network, worked out from its nodes.

A network names its values and says nothing of their shapes; the builder declares engine inputs from
here, the summary and ``trt-resa inspect`` print from here, tests compare engines against here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trt_resa.contract import INPUT_IDS, LOGIT_ROWS
from trt_resa.model_config import ModelConfig
from trt_resa.network import Network, Node

#: Bytes of one element of each type that a stored weight or a value can have.
ELEMENT_BYTES = {"uint8": 1, "int32": 4, "float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class ValueSpec:
    """A value: ``rows`` is T (tokens of the forward) or R (logit rows); no columns: a vector."""

    name: str
    dtype: str
    rows: str
    columns: int | None = None

    @property
    def shape(self) -> tuple[str, ...]:
        return (self.rows,) if self.columns is None else (self.rows, str(self.columns))

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(self.shape)}]"


def value_specs(network: Network, model: ModelConfig, dtype: str) -> dict[str, ValueSpec]:
    """The specification of each value by name, in execution order; ``dtype`` is the network's."""
    specs = {
        INPUT_IDS: ValueSpec(INPUT_IDS, "int32", "T"),
        LOGIT_ROWS: ValueSpec(LOGIT_ROWS, "int32", "R"),
    }
    for node in network.nodes:
        first = specs[node.inputs[0]]
        rows = specs[LOGIT_ROWS].rows if node.op == "gather_rows" else first.rows
        keeps_type = node.op in ("add", "gather_rows")
        kind = first.dtype if keeps_type else "float32" if is_wide(node) else dtype
        specs[node.output] = ValueSpec(node.output, kind, rows, _columns(node, first, model))
    return specs


def is_wide(node: Node) -> bool:
    """Whether the result of an embedding or a linear is in fp32."""
    return bool(node.attributes.get("wide", False))


def linear_size(node: Node) -> tuple[int, int]:
    """(K, N) of a linear node."""
    weights = node.weights
    if "qweight" in weights:
        k, half = weights["qweight"].shape
        return k, 2 * half
    n, k = weights["weight"].shape
    return k, n


def node_weight_bytes(node: Node) -> int:
    """Bytes of a node's stored weights."""
    return sum(math.prod(w.shape) * ELEMENT_BYTES[w.dtype] for w in node.weights.values())


def _columns(node: Node, first: ValueSpec, model: ModelConfig) -> int | None:
    if node.op == "embedding":
        return node.weights["weight"].shape[1]
    if node.op == "linear":
        return linear_size(node)[1]
    if node.op == "attention":
        return model.attention_size
    if node.op == "swiglu":
        assert first.columns is not None
        return first.columns // 2
    return first.columns
