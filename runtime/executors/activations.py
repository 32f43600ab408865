"""The activation buffers between segments: few, fixed, shared by every layer and every shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trt_resa.contract import INPUT_IDS, LOGIT_ROWS
from trt_resa.network import ATTENTION, Network
from trt_resa.values import ValueSpec

#: Columns and element type: values of one kind can share a buffer.
Kind = tuple[int, str, str]


@dataclass(frozen=True)
class Stage:
    """A segment or an attention node: what it reads and what it writes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def stages(network: Network) -> tuple[Stage, ...]:
    """Segments and attention nodes in turn; a segment is first and last."""
    attention = [node for node in network.nodes if node.op == ATTENTION]
    ordered: list[Stage] = []
    for index, segment in enumerate(network.segments()):
        ordered.append(Stage(segment.inputs, segment.outputs))
        if index < len(attention):
            ordered.append(Stage(attention[index].inputs, (attention[index].output,)))
    return tuple(ordered)


def assign_buffers(
    ordered: Sequence[Stage], specs: Mapping[str, ValueSpec]
) -> tuple[dict[str, int], list[Kind]]:
    """Buffer number of each value between stages, and the kind of each buffer.

    A value holds its buffer until its last reader has run; a stage never writes a buffer that it
    reads.
    """
    last_reader = {name: at for at, stage in enumerate(ordered) for name in stage.inputs}
    chosen: dict[str, int] = {}
    kinds: list[Kind] = []
    free: list[int] = []
    for at, stage in enumerate(ordered):
        for name in stage.outputs:
            spec = specs[name]
            assert spec.columns is not None
            kind = (spec.columns, spec.dtype, spec.rows)
            number = next((n for n in free if kinds[n] == kind), None)
            if number is None:
                number = len(kinds)
                kinds.append(kind)
            else:
                free.remove(number)
            chosen[name] = number
        free += [chosen[n] for n in stage.inputs if n in chosen and last_reader[n] == at]
    return chosen, kinds


class Activations:
    """Device tensors of every value that crosses a seam, by name; many names share a tensor.

    ``max_rows`` rows for values of the forward's rows, ``max_logit_rows`` for those of its logits.
    The tensors of the network's own inputs are given.
    """

    def __init__(
        self,
        network: Network,
        specs: Mapping[str, ValueSpec],
        inputs: Mapping[str, torch.Tensor],
        max_rows: int,
        max_logit_rows: int,
        device: torch.device,
    ) -> None:
        self.stages = stages(network)
        chosen, kinds = assign_buffers(self.stages, specs)
        rows = {specs[INPUT_IDS].rows: max_rows, specs[LOGIT_ROWS].rows: max_logit_rows}
        buffers = [
            torch.empty(rows[symbol], columns, dtype=getattr(torch, dtype), device=device)
            for columns, dtype, symbol in kinds
        ]
        self.tensors = {**inputs, **{name: buffers[number] for name, number in chosen.items()}}

    def address(self, name: str) -> int:
        return self.tensors[name].data_ptr()
