"""The network of a decoder as data: a list of nodes that every flavour and executor reads.

The builder traces a model family into a ``Network``; the TensorRT flavours emit layers from it and
the torch executor interprets it, so both run the same description. ``segments`` cuts it at the
attention nodes.

Operators (x is [T, columns]; results are in the network's dtype unless said otherwise):

=============  ======================  ======================================================
op             inputs                  result; weights and attributes
=============  ======================  ======================================================
embedding      input_ids               rows of ``weight`` [vocab, hidden]; attribute ``wide``
rms_norm       x                       x / rms(x) in fp32, times ``weight``; attribute ``eps``
linear         x                       x @ W.T (+ ``bias`` [N]); W is ``weight`` [N, K], or INT4;
                                       attribute ``wide``
swiglu         x [T, 2 I]              silu(x[:, :I]) * x[:, I:]
add            x, y                    x + y, in the type of both
attention      qkv [T, qkv_size]       [T, attention_size]: appends K/V, attends; attributes
                                       ``layer``, ``eps``; weights ``q_norm``, ``k_norm`` or none
gather_rows    x, logit_rows           x[logit_rows], in its type
=============  ======================  ======================================================

The result of a ``wide`` node is in fp32: the residual stream, what is added to it, and the logits.
Rounding the stream after every sum would add more noise to the logits than all roundings before
them together. A network with INT4 linears keeps its stream in its dtype: their kernels add to it.

An INT4 linear has the weights ``qweight`` uint8 [K, N / 2] (two's-complement nibbles, the even
column low), ``scales`` [K / 128, N] and, where the checkpoint has zero points, ``offsets``
[K / 128, N] with W.T[k, n] = q[k, n] * scales[k // 128, n] + offsets[k // 128, n].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from trt_resa.validation import STRICT

#: Input columns that share one scale in an INT4 linear.
INT4_BLOCK = 128

ATTENTION = "attention"


@dataclass(frozen=True, config=STRICT)
class Weight:
    """A tensor of the engine directory: its name there, shape and element type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, config=STRICT)
class Node:
    """One operator application; values are named strings."""

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, Weight] = Field(default_factory=dict)
    attributes: Mapping[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Segment:
    """The nodes between two attention seams, and the values that cross its ends."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def weights(self) -> Iterator[Weight]:
        for node in self.nodes:
            yield from node.weights.values()


@dataclass(frozen=True, config=STRICT)
class Network:
    """All nodes in execution order, and the names of the network's own inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def attention_nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == ATTENTION)

    def segments(self) -> tuple[Segment, ...]:
        """The network cut at its attention nodes: one segment more than there are of those.

        A segment's inputs are the values it reads and did not make; its outputs those it made that
        a later segment, an attention node or the network's caller reads.
        """
        groups: list[list[Node]] = [[]]
        for node in self.nodes:
            if node.op == ATTENTION:
                groups.append([])
            else:
                groups[-1].append(node)
        readers = [(node, {*node.inputs}) for node in self.nodes]
        return tuple(self._segment(group, readers) for group in groups)

    def _segment(self, group: list[Node], readers: list[tuple[Node, set[str]]]) -> Segment:
        made = {node.output for node in group}
        inside = {id(node) for node in group}
        inputs = dict.fromkeys(name for node in group for name in node.inputs if name not in made)
        read_outside = set(self.outputs)
        for node, names in readers:
            if id(node) not in inside:
                read_outside |= names
        outputs = tuple(node.output for node in group if node.output in read_outside)
        return Segment(tuple(inputs), outputs, tuple(group))
