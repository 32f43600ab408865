"""Writes the decoder of a checkpoint as an ONNX model, one segment's weights in memory at a time.

The model has the inputs and outputs of ``trt_resa.contract`` with dynamic sizes, and one
``trt_resa::ReSAAttention`` node per layer. Its weights lie in one file beside it, ``NAME.data``.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx
import torch
from onnx import TensorProto, helper

from trt_resa import contract, plugin_fields
from trt_resa.builder.onnx_layers import TYPES, OnnxLayers
from trt_resa.builder.plan import Plan
from trt_resa.builder.weights import WeightLoader
from trt_resa.errors import EngineError
from trt_resa.network import Node, Weight
from trt_resa.version import __version__

OPSET = 23
_IR_VERSION = 11  # the format that came with opset 23
_PLUGIN_DOMAIN_VERSION = 1

#: Weights begin at multiples of a page, so that readers can map the file.
_ALIGNMENT = 4096


def export_onnx(planned: Plan, output: Path | str, *, overwrite: bool = False) -> Path:
    """Write ``output`` and its weights ``<output>.data``; both are whole, or as they were.

    Memory stays below that of ``build`` for the same checkpoint. Raises CheckpointError when a
    weight cannot be read, ConfigError when keep_ratio does not fit a plugin field, EngineError when
    a file exists already (unless ``overwrite``) or cannot be written.
    """
    output = Path(output).absolute()
    data = output.with_name(output.name + ".data")
    check_output(output, overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{output.name}.partial-", dir=output.parent
        ) as work:
            partial = Path(work) / data.name
            with partial.open("wb") as file:
                model = _model(planned, _DataFile(file, planned, data.name))
            described = Path(work) / output.name
            described.write_bytes(model.SerializeToString())
            partial.replace(data)
            described.replace(output)
    except OSError as error:
        raise EngineError(
            f"{output} cannot be written ({error}); give a path in a directory with enough space"
        ) from None
    return output


def check_output(output: Path, overwrite: bool) -> None:
    """Raise EngineError when ``output`` is no path that a model may be written to."""
    if output.suffix != ".onnx":
        raise EngineError(f"--output {output} has to end in .onnx")
    if output.is_dir():
        raise EngineError(f"--output {output} is a directory; give the path of a file")
    if output.exists() and not overwrite:
        raise EngineError(
            f"--output {output} exists already; give --overwrite to replace it or another path"
        )


def _model(planned: Plan, weights: _DataFile) -> onnx.ModelProto:
    specs = planned.specs
    layers = OnnxLayers(planned.model, planned.sparse, planned.build.dtype, specs, weights)
    for node in _with_weights(planned, weights):
        layers.add(node)
    # The checker knows no shapes of another domain's nodes.
    attention = [specs[node.output] for node in planned.network.attention_nodes]
    graph = helper.make_graph(
        layers.nodes,
        planned.model.model_type,
        [_value(planned, spec.name, spec.dtype, spec.shape) for spec in contract.INPUTS],
        [_value(planned, spec.name, spec.dtype, spec.shape) for spec in contract.OUTPUTS],
        [*layers.constants.values(), *weights.tensors.values()],
        value_info=[_value(planned, spec.name, spec.dtype, spec.shape) for spec in attention],
    )
    model = helper.make_model(
        graph,
        producer_name="trt_resa",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(plugin_fields.PLUGIN_NAMESPACE, _PLUGIN_DOMAIN_VERSION),
        ],
    )
    helper.set_model_props(
        model,
        {
            "checkpoint": planned.checkpoint.path.resolve().name,
            "checkpoint_sha256": planned.checkpoint.sha256(),
        },
    )
    return model


def _with_weights(planned: Plan, weights: _DataFile) -> Iterator[Node]:
    """The nodes in execution order, the weights of each at hand while it is taken."""
    loader = WeightLoader(planned.checkpoint, planned.description, planned.build)
    segments = [segment.nodes for segment in planned.network.segments()]
    seams = [(node,) for node in planned.network.attention_nodes]
    for pair in itertools.zip_longest(segments, seams, fillvalue=()):
        for nodes in pair:
            wanted = [weight for node in nodes for weight in node.weights.values()]
            with weights.holding(loader.load(wanted)):
                yield from nodes


def _value(planned: Plan, name: str, dtype: str, symbols: tuple[str, ...]) -> onnx.ValueInfoProto:
    """Sizes that the model fixes are numbers; the others keep their symbols."""
    known = {"L": planned.model.num_layers, "V": planned.model.vocab_size}
    shape = [int(s) if s.isdigit() else known.get(s, s) for s in symbols]
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)


class _DataFile:
    """The weights file under construction, and the initializers that refer to it."""

    def __init__(self, file: BinaryIO, planned: Plan, location: str) -> None:
        self.tensors: dict[str, onnx.TensorProto] = {}
        self._file = file
        self._location = location
        self._sources = planned.description.sources
        self._loaded: Mapping[str, torch.Tensor] = {}
        #: By checkpoint tensors: a tied head is the embedding's initializer once more.
        self._written: dict[tuple[str, ...], str] = {}

    @contextlib.contextmanager
    def holding(self, loaded: Mapping[str, torch.Tensor]) -> Iterator[None]:
        self._loaded = loaded
        try:
            yield
        finally:
            self._loaded = {}

    def weight(self, weight: Weight, scale: float = 1.0) -> str:
        sources = self._sources[weight.name]
        if weight.name.endswith(".weight") and sources in self._written:
            return self._written[sources]
        tensor = self._loaded[weight.name]
        tensor = tensor if scale == 1.0 else tensor * scale
        self._write(weight.name, TYPES[weight.dtype], tuple(tensor.shape), tensor)
        if weight.name.endswith(".weight"):
            self._written[sources] = weight.name
        return weight.name

    def int4(self, weight: Weight) -> str:
        """Packed alike in ONNX: row by row, the even column low."""
        k, half = weight.shape
        self._write(weight.name, TensorProto.INT4, (k, 2 * half), self._loaded[weight.name])
        return weight.name

    def _write(self, name: str, kind: int, shape: tuple[int, ...], tensor: torch.Tensor) -> None:
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        length = self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        proto = TensorProto(name=name, data_type=kind, dims=shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", offset), ("length", length)):
            proto.external_data.add(key=key, value=str(value))
        self.tensors[name] = proto
