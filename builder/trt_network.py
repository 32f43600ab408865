"""Builds the engine of a whole decoder with data-centre TensorRT; attention is a plugin layer.

The layers are those of the TensorRT-RTX segments (``trt_layers``), joined by the plugin, and the
engine's inputs and output are the tensors of ``trt_resa.contract``. It has the two optimisation
profiles of ``trt_resa.builder.rtx``; P, the extent of ``phase``, may be 0 or 1 in both, and kernels
are chosen for a sparse step in the first and for a dense pass in the second. TensorRT wants the
weights of a network all at once, so the build holds the whole model in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trt_resa import contract, plugin_fields
from trt_resa.blocks import num_blocks
from trt_resa.builder.plan import Plan
from trt_resa.builder.trt_build import add_profiles, failure, row_ranges, write_engine
from trt_resa.builder.trt_layers import Layers, Tensor
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.contract import TensorSpec
from trt_resa.errors import EngineError
from trt_resa.model_config import ModelConfig
from trt_resa.network import Node
from trt_resa.rope import inverse_frequencies

#: Makes the plugin (``trt.IPluginV3``) of an attention node from its name and field values.
MakePlugin = Callable[[str, Mapping[str, "int | float"]], Any]

_WAY_OUT = "build with --executors tensorrt_rtx or torch to run without it"


@dataclass(frozen=True, kw_only=True)
class TrtOptions:
    """What only this flavour can be told.

    ``weight_streaming`` lets weights stay in host memory; ``strip_plan`` leaves them out of the
    engine, which then has to be refitted; ``timing_cache`` is read, and written after the build.
    """

    profiling_verbosity: str = "detailed"
    weight_streaming: bool = False
    strip_plan: bool = False
    timing_cache: Path | None = None


class DecoderLayers(Layers):
    """Adds a whole network: ``Layers``, with attention as a plugin layer."""

    def __init__(
        self,
        trt: Any,
        network: Any,
        weights: Mapping[str, torch.Tensor],
        model: ModelConfig,
        sparse: SparseAttentionConfig,
        make_plugin: MakePlugin,
    ) -> None:
        super().__init__(trt, network, weights)
        self._model = model
        self._sparse = sparse
        self._make_plugin = make_plugin
        self._inv_freq = inverse_frequencies(model.rope)[0]

    def _attention(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        constants = {plugin_fields.INV_FREQ: self._constant(self._inv_freq)}
        shared = [
            constants[name] if name in constants else self._values[name]
            for name in plugin_fields.INPUTS
        ]
        norms = [
            self._weight(node, role) for role in plugin_fields.NORM_INPUTS if role in node.weights
        ]
        values = plugin_fields.field_values(node, self._model, self._sparse)
        plugin = self._make_plugin(node.output, values)
        self._alive.append(plugin)
        return self._output("plugin_v3", [*inputs, *shared, *norms], [], plugin)


def input_specs(model: ModelConfig) -> tuple[TensorSpec, ...]:
    """The inputs of the contract, the number of layers a number."""
    return tuple(
        dataclasses.replace(
            spec, shape=tuple(str(model.num_layers) if s == "L" else s for s in spec.shape)
        )
        for spec in contract.INPUTS
    )


def profiles(
    build: BuildConfig, sparse: SparseAttentionConfig
) -> tuple[dict[str, tuple[int, int, int]], ...]:
    """(minimum, optimum, maximum) of every dynamic size, per profile."""
    assert build.max_seq_len is not None
    batch, blocks = build.max_batch_size, num_blocks(build.max_seq_len, sparse.block_size)
    shared = {"B": (1, batch, batch), "B+1": (2, batch + 1, batch + 1), "M": (1, blocks, blocks)}
    few, many = row_ranges(batch, build.max_num_tokens, sparse.rectify_interval)
    return {**few, **shared, "P": (0, 0, 1)}, {**many, **shared, "P": (0, 1, 1)}


def decoder_writer(
    planned: Plan, options: TrtOptions
) -> Callable[[Mapping[str, torch.Tensor], Path], None]:
    """A function that writes the engine of the whole decoder, from all weights of the network.

    Building takes TensorRT, its plugin and a GPU. Raises EngineError when one of the first two is
    missing; the function raises EngineError with TensorRT's own words when it builds no engine, and
    ConfigError when keep_ratio does not fit a plugin field.
    """
    from trt_resa.trt import LOG, plugin_creator, trt

    make_plugin = plugin_maker(trt, LOG, plugin_creator())
    inputs = input_specs(planned.model)

    def write(weights: Mapping[str, torch.Tensor], path: Path) -> None:
        LOG.take_errors()  # those of an earlier failure
        builder = trt.Builder(LOG)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        layers = DecoderLayers(trt, network, weights, planned.model, planned.sparse, make_plugin)
        try:
            layers.add_inputs(inputs)
            layers.add_nodes(planned.network.nodes)
            layers.mark_outputs(planned.network.outputs)
        except (AttributeError, TypeError):  # a refused layer is None in the bindings
            reason = LOG.take_errors()
            if not reason:
                raise
            raise failure(trt, path, reason, _WAY_OUT) from None
        config = _config(trt, builder, options)
        add_profiles(builder, config, inputs, profiles(planned.build, planned.sparse))
        write_engine(trt, LOG, builder, network, config, path, _WAY_OUT)
        if options.timing_cache is not None:
            content = memoryview(config.get_timing_cache().serialize())
            options.timing_cache.write_bytes(content)

    return write


def _config(trt: Any, builder: Any, options: TrtOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = getattr(
        trt.ProfilingVerbosity, options.profiling_verbosity.upper()
    )
    for flag in ("weight_streaming", "strip_plan"):
        if getattr(options, flag):
            config.set_flag(getattr(trt.BuilderFlag, flag.upper()))
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    return config


def plugin_maker(trt: Any, log: Any, creator: Any) -> MakePlugin:
    """Makes plugins with ``creator``; raises EngineError with its words when it refuses one."""
    kinds = {"int32": trt.PluginFieldType.INT32, "float32": trt.PluginFieldType.FLOAT32}

    def make(name: str, values: Mapping[str, int | float]) -> Any:
        # The fields point into the arrays, which must live through the call.
        arrays = {f.name: np.array([values[f.name]], f.kind) for f in plugin_fields.FIELDS}
        fields = trt.PluginFieldCollection(
            [trt.PluginField(f.name, arrays[f.name], kinds[f.kind]) for f in plugin_fields.FIELDS]
        )
        log.take_errors()
        plugin = creator.create_plugin(name, fields, trt.TensorRTPhase.BUILD)
        if plugin is None:
            reason = log.take_errors() or "it gave no reason"
            raise EngineError(f"the plugin of {name} refused its fields: {reason}; {_WAY_OUT}")
        return plugin

    return make
