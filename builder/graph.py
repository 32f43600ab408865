"""Emits the nodes of a network, and records which checkpoint tensors each weight is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trt_resa.model_config import ModelConfig
from trt_resa.network import ATTENTION, INT4_BLOCK, Node, Weight

#: Of a linear made of these checkpoint modules, with these rows each and K columns: None when it
#: stays in the network's dtype, else whether its INT4 form has offsets.
Int4Form = Callable[[Sequence[str], Sequence[int], int], "bool | None"]


class Graph:
    """A network under construction.

    A method emits one node and returns the name of its output. ``modules`` are checkpoint modules,
    concatenated along their rows; ``rows`` is the height of each.
    """

    def __init__(self, model: ModelConfig, dtype: str, int4_form: Int4Form) -> None:
        self.nodes: list[Node] = []
        self.sources: dict[str, tuple[str, ...]] = {}
        #: Shape that config.json promises of each checkpoint tensor.
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._model = model
        self._dtype = dtype
        self._int4_form = int4_form

    def is_int4(self, module: str, n: int, k: int) -> bool:
        """Whether the linear of this module, [n, k], has INT4 weights."""
        return self._int4_form([module], [n], k) is not None

    def embedding(self, name: str, ids: str, module: str, wide: bool) -> str:
        shape = (self._model.vocab_size, self._model.hidden_size)
        weight = self._weight(f"{name}.weight", [f"{module}.weight"], [shape])
        return self._emit("embedding", (ids,), name, {"weight": weight}, {"wide": wide})

    def rms_norm(self, name: str, x: str, module: str) -> str:
        weight = self._norm_weight(name, module, self._model.hidden_size)
        eps = {"eps": self._model.rms_norm_eps}
        return self._emit("rms_norm", (x,), name, {"weight": weight}, eps)

    def linear(
        self,
        name: str,
        x: str,
        modules: Sequence[str],
        rows: Sequence[int],
        k: int,
        *,
        bias: bool = False,
        wide: bool = False,
        output: str | None = None,
    ) -> str:
        """x [T, k] @ W.T with W [sum(rows), k]; its weights are named after ``name``, and so is its
        result unless ``output`` is given."""
        shapes = [(n, k) for n in rows]
        sources = [f"{module}.weight" for module in modules]
        offsets = self._int4_form(modules, rows, k)
        weights: dict[str, Weight] = {}
        if offsets is None:
            weights["weight"] = self._weight(f"{name}.weight", sources, shapes)
        else:
            n, blocks = sum(rows), k // INT4_BLOCK
            forms = {"qweight": ((k, n // 2), "uint8"), "scales": ((blocks, n), self._dtype)}
            if offsets:
                forms["offsets"] = ((blocks, n), self._dtype)
            for key, (shape, dtype) in forms.items():
                self._record(f"{name}.{key}", sources, shapes)
                weights[key] = Weight(f"{name}.{key}", shape, dtype)
        if bias:
            biases = [f"{module}.bias" for module in modules]
            weights["bias"] = self._weight(f"{name}.bias", biases, [(n,) for n in rows])
        return self._emit("linear", (x,), output or name, weights, {"wide": wide})

    def attention(self, name: str, qkv: str, layer: int, q_norm: str, k_norm: str) -> str:
        weights = {}
        if self._model.qk_norm:
            for key, module in (("q_norm", q_norm), ("k_norm", k_norm)):
                prefix = f"{name.rpartition('.')[0]}.{key}"
                weights[key] = self._norm_weight(prefix, module, self._model.head_dim)
        attributes = {"layer": layer, "eps": self._model.rms_norm_eps}
        return self._emit(ATTENTION, (qkv,), name, weights, attributes)

    def swiglu(self, name: str, x: str) -> str:
        return self._emit("swiglu", (x,), name)

    def add(self, name: str, x: str, y: str) -> str:
        return self._emit("add", (x, y), name)

    def gather_rows(self, name: str, x: str, rows: str) -> str:
        return self._emit("gather_rows", (x, rows), name)

    def _norm_weight(self, name: str, module: str, size: int) -> Weight:
        return self._weight(f"{name}.weight", [f"{module}.weight"], [(size,)])

    def _weight(
        self, name: str, sources: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> Weight:
        self._record(name, sources, shapes)
        rows = sum(shape[0] for shape in shapes)
        return Weight(name, (rows, *shapes[0][1:]), self._dtype)

    def _record(self, name: str, sources: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        self.sources[name] = tuple(sources)
        self.shapes.update(zip(sources, shapes, strict=True))

    def _emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        output: str,
        weights: dict[str, Weight] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> str:
        self.nodes.append(Node(op, inputs, output, weights or {}, attributes or {}))
        return output
