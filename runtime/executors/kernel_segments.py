"""Segments without TensorRT: INT4 linears by our kernels, everything else by PyTorch.

The counterpart of ``rtx_segments`` for INT4 weights, which TensorRT-RTX runs far below the memory's
bandwidth, and for GPUs that it is not made for. INT4 weights exist once: a forward of few rows
multiplies with them as they are, a prefill chunk unpacks one linear at a time for a GEMM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from trt_resa.contract import LOGIT_ROWS
from trt_resa.kernels import KernelLibrary
from trt_resa.network import Node, Segment
from trt_resa.runtime.executors.activations import Activations
from trt_resa.runtime.executors.buckets import Buckets, ForwardShape
from trt_resa.runtime.executors.int4_linear import Int4Linear, RmsNorm
from trt_resa.runtime.executors.operators import compile_node

Values = dict[str, torch.Tensor]
#: Reads values, writes one, on a stream (its handle).
Operation = Callable[[Values, int], None]


class KernelSegments:
    """Runs segment i with ``enqueue(i, shape, stream)``, like ``RtxSegments``.

    ``weights``: of each segment in turn, by name, on the device and in the model's dtype.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        weights: Iterable[Mapping[str, torch.Tensor]],
        library: KernelLibrary,
    ) -> None:
        self._segments, self._library = segments, library
        self._scratch = torch.empty(0)
        self._linears: list[Int4Linear] = []
        self._programs = [
            self._compile(segment, own) for segment, own in zip(segments, weights, strict=True)
        ]

    def bind(self, activations: Activations, buckets: Buckets) -> None:
        """Say where values stand; allocates room for the largest unpacked linear."""
        self._activations = activations
        size = max((linear.size for linear in self._linears), default=0)
        if size and buckets.limits.max_num_tokens > Int4Linear.MOST_ROWS:
            first = self._linears[0].tiles.scales
            room = torch.empty(size, dtype=first.dtype, device=first.device)
            for linear in self._linears:
                linear.room = room

    def prepare(self, shape: ForwardShape, stream: torch.cuda.Stream) -> None:
        """Nothing depends on the shape."""

    def enqueue(self, index: int, shape: ForwardShape, stream: torch.cuda.Stream) -> None:
        segment = self._segments[index]
        if LOGIT_ROWS in segment.inputs and not shape.logit_rows:
            return  # nobody wants its logits
        tensors = self._activations.tensors
        rows = {name: shape.rows for name in (*segment.inputs, *segment.outputs)}
        if LOGIT_ROWS in segment.inputs:
            rows |= dict.fromkeys((LOGIT_ROWS, *segment.outputs), shape.logit_rows)
        # Outputs stand in their places before they are written: operations write there.
        values = {name: tensors[name][:count] for name, count in rows.items()}
        for operation in self._programs[index]:
            operation(values, stream.cuda_stream)

    def _compile(self, segment: Segment, weights: Mapping[str, torch.Tensor]) -> list[Operation]:
        readers: dict[str, list[Node]] = {}
        for node in segment.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        program: list[Operation] = []
        fused: set[str] = set()
        for node in segment.nodes:
            if node.output in fused:
                continue
            own = {role: weights[weight.name] for role, weight in node.weights.items()}
            if "qweight" in own:
                after = readers.get(node.output, [])
                follower = after[0] if len(after) == 1 else None
                inside = node.output not in segment.outputs
                if follower is None or not inside or follower.op not in ("swiglu", "add"):
                    follower = None
                else:
                    fused.add(follower.output)
                program.append(self._int4(node, follower, own))
            elif node.op == "rms_norm":
                norm = RmsNorm(own["weight"], float(node.attributes["eps"]), self._library)
                program.append(_plain(node, norm))
            else:
                program.append(_by_torch(node, own))
        return program

    def _int4(
        self, node: Node, follower: Node | None, own: Mapping[str, torch.Tensor]
    ) -> Operation:
        """The linear, and with it the activation or the sum that follows."""
        swiglu = follower is not None and follower.op == "swiglu"
        linear = Int4Linear(own, swiglu, self._library)
        self._linears.append(linear)
        name = node.inputs[0]
        output = node.output if follower is None else follower.output
        residual: str | None = None
        if follower is not None and follower.op == "add":
            first, second = follower.inputs
            residual = second if first == node.output else first

        def run(values: Values, stream: int) -> None:
            other = None if residual is None else values[residual]
            values[output] = linear(values[name], values.get(output), other, stream)

        return run


def _plain(node: Node, function: Callable[..., torch.Tensor]) -> Operation:
    def run(values: Values, stream: int) -> None:
        out = values.get(node.output)
        values[node.output] = function(values[node.inputs[0]], out, stream)

    return run


def _by_torch(node: Node, own: Mapping[str, torch.Tensor]) -> Operation:
    operator = compile_node(node, own)

    def run(values: Values, stream: int) -> None:
        inputs = [values[name] for name in node.inputs]
        out = values.get(node.output)
        if out is None:
            values[node.output] = operator(*inputs)
        else:
            out.copy_(operator(*inputs))

    return run
