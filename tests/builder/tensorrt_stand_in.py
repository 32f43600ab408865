"""A module ``tensorrt`` made of TensorRT-RTX, which has all of it but plugin layers.

``add_plugin_v3`` and the plugin's creator are replaced: the layer is a product with a constant, of
the plugin's output shape, and remembers what it was given.
"""

from __future__ import annotations

import importlib.machinery
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorrt_rtx

from trt_resa import plugin_fields


@dataclass
class Seam:
    """A plugin layer as it was asked for."""

    inputs: list[tuple[str, Any, tuple[int, ...]]]
    fields: dict[str, Any]


@dataclass
class Plugin:
    name: str
    fields: dict[str, Any]


class PluginCreator:
    def create_plugin(self, name: str, fields: Any, phase: Any) -> Plugin:
        assert phase == tensorrt_rtx.TensorRTPhase.BUILD
        return Plugin(name, fields)


class Network:
    """A TensorRT-RTX network with plugin layers."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.seams: list[Seam] = []
        #: Whatever the network points into.
        self.owners: tuple[Any, ...] = ()
        self._alive: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def add_plugin_v3(self, inputs: list[Any], shape_inputs: list[Any], plugin: Plugin) -> Any:
        assert shape_inputs == []
        self.seams.append(Seam([(x.name, x.dtype, tuple(x.shape)) for x in inputs], plugin.fields))
        values = plugin.fields
        columns = values["q_heads"] * values["head_dim"]
        assert inputs[0].dtype == tensorrt_rtx.float16
        constant = np.ones((inputs[0].shape[1], columns), np.float16)
        self._alive.append(constant)
        weight = self.real.add_constant(constant.shape, tensorrt_rtx.Weights(constant))
        plain = tensorrt_rtx.MatrixOperation.NONE
        return self.real.add_matrix_multiply(inputs[0], plain, weight.get_output(0), plain)


@dataclass
class Builder:
    """Hands out such networks and builds the real ones inside."""

    log: Any
    networks: list[Network] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._real = tensorrt_rtx.Builder(self.log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_network(self, flags: int) -> Network:
        strongly_typed = tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert flags == 1 << int(strongly_typed)
        self.networks.append(Network(self._real.create_network(flags)))
        return self.networks[-1]

    def build_serialized_network_to_stream(
        self, network: Network, config: Any, writer: Any
    ) -> bool:
        return self._real.build_serialized_network_to_stream(network.real, config, writer)


class StandIn(types.ModuleType):
    """The module; ``builders`` are those that were made with it."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.builders: list[Builder] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def Builder(self, log: Any) -> Builder:
        self.builders.append(Builder(log))
        return self.builders[-1]

    def PluginField(self, name: str, data: np.ndarray, kind: Any) -> tuple[str, Any]:
        wanted = {f.name: f.kind for f in plugin_fields.FIELDS}[name]
        assert (kind.name.lower(), str(data.dtype)) == (wanted, wanted)
        return name, data.item()

    def PluginFieldCollection(self, fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(fields)

    def get_plugin_registry(self) -> Any:
        def get_creator(name: str, version: str, namespace: str) -> PluginCreator:
            assert (name, version, namespace) == ("ReSAAttention", "1", "trt_resa")
            return PluginCreator()

        return types.SimpleNamespace(get_creator=get_creator)
