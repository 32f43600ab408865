"""The whole-decoder network of TensorRT: that of the TensorRT-RTX segments, and attention plugins.

``tensorrt`` is not needed: a stand-in made of TensorRT-RTX has all of it but plugin layers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builder.networks import FAMILIES, network_of, random_weights, tiny_model
from tests.checkpoints import tiny_checkpoint
from trt_resa import contract, plugin_fields
from trt_resa.builder.build import build
from trt_resa.builder.trt_layers import Layers
from trt_resa.builder.trt_network import (
    DecoderLayers,
    TrtOptions,
    input_specs,
    plugin_maker,
    profiles,
)
from trt_resa.cli import main
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import MODEL_ENGINE, EngineDirectory
from trt_resa.errors import EngineError
from trt_resa.kernels import KernelLibraryError, find_library
from trt_resa.model_config import ModelConfig
from trt_resa.network import Network
from trt_resa.values import value_specs

pytest.importorskip("tensorrt_rtx")
from tests.builder import tensorrt_stand_in
from trt_resa.rtx import LOG, VERSION, check_engine_file
from trt_resa.rtx import trt as rtx

SPARSE = SparseAttentionConfig(keep_ratio=0.3, min_blocks=4, sink_blocks=2, dense_below=0)
Weights = dict[str, torch.Tensor]


@pytest.fixture
def fresh_import() -> Iterator[None]:
    """``trt_resa.trt`` is imported anew in the test, and is forgotten after it."""
    sys.modules.pop("trt_resa.trt", None)
    yield
    sys.modules.pop("trt_resa.trt", None)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, fresh_import: None) -> tensorrt_stand_in.StandIn:
    module = tensorrt_stand_in.StandIn()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def layer_list(network: Any) -> list[tuple]:
    """Name, type, inputs and outputs of every layer."""

    def tensors(count: int, get: Any) -> list[tuple]:
        found = [get(index) for index in range(count)]
        return [(t.dtype.name, tuple(t.shape)) for t in found if t is not None]

    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [
        (
            layer.name,
            layer.type.name,
            tensors(layer.num_inputs, layer.get_input),
            tensors(layer.num_outputs, layer.get_output),
        )
        for layer in layers
    ]


def decoder_network(
    model: ModelConfig, network: Network, weights: Weights
) -> tensorrt_stand_in.Network:
    """The network; it keeps alive what it was made with."""
    module = tensorrt_stand_in.StandIn()
    whole = module.Builder(LOG).create_network(1)
    make = plugin_maker(module, LOG, tensorrt_stand_in.PluginCreator())
    layers = DecoderLayers(module, whole, weights, model, SPARSE, make)
    layers.add_inputs(input_specs(model))
    layers.add_nodes(network.nodes)
    layers.mark_outputs(network.outputs)
    whole.owners = (module, layers)
    return whole


def segment_layers(model: ModelConfig, network: Network, weights: Weights) -> list[list[tuple]]:
    specs = value_specs(network, model, "float16")
    builder, lists = rtx.Builder(LOG), []
    for segment in network.segments():
        emitted = builder.create_network(0)
        layers = Layers(rtx, emitted, weights)
        layers.add_inputs(specs[name] for name in segment.inputs)
        layers.add_nodes(segment.nodes)
        layers.mark_outputs(segment.outputs)
        lists.append(layer_list(emitted))
    return lists


@pytest.mark.parametrize("int4", [None, "symmetric", "offsets"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_differs_from_the_segments_at_the_seams_alone(family: str, int4: str | None) -> None:
    model = tiny_model(family)
    network = network_of(model, "float16", int4)
    weights = random_weights([w for node in network.nodes for w in node.weights.values()], seed=0)
    whole = decoder_network(model, network, weights)

    seams = tuple(f"{node.output}/" for node in network.attention_nodes)
    found = layer_list(whole)
    between = [layer for layer in found if not layer[0].startswith(seams)]
    segments = segment_layers(model, network, weights)
    assert between == [layer for segment in segments for layer in segment]
    assert len(between) > 30
    # Each seam lies where one segment ends and the next begins.
    names = [layer[0] for layer in found]
    for seam, before, after in zip(seams, segments, segments[1:], strict=False):
        inside = [index for index, name in enumerate(names) if name.startswith(seam)]
        assert names[inside[0] - 1] == before[-1][0]
        assert names[inside[-1] + 1] == after[0][0]

    inputs = {spec.name: spec for spec in input_specs(model)}
    for layer, seam in enumerate(whole.seams):
        assert seam.fields == pytest.approx(
            plugin_fields.field_values(network.attention_nodes[layer], model, SPARSE)
        )
        assert seam.inputs[0][1:] == (rtx.float16, (-1, model.qkv_size))
        constant = plugin_fields.INPUTS.index(plugin_fields.INV_FREQ)
        assert [name for name, *_ in seam.inputs[1:][:constant]] == [*plugin_fields.INPUTS[:-1]]
        for name, dtype, _ in seam.inputs[1:][:constant]:
            assert dtype == getattr(rtx, inputs[name].dtype)
        assert seam.inputs[1 + constant][1:] == (rtx.float32, (model.rope.rotary_dim // 2,))
        norms = [entry[1:] for entry in seam.inputs[2 + constant :]]
        assert norms == ([(rtx.float16, (model.head_dim,))] * 2 if family == "qwen3" else [])


def test_the_inputs_and_outputs_are_the_contract() -> None:
    model = tiny_model()
    network = network_of(model, "float16")
    weights = random_weights([w for node in network.nodes for w in node.weights.values()], seed=0)
    whole = decoder_network(model, network, weights)
    found = [whole.get_input(index) for index in range(whole.num_inputs)]
    assert [tensor.name for tensor in found] == [spec.name for spec in contract.INPUTS]
    for tensor, spec in zip(found, contract.INPUTS, strict=True):
        sizes = [model.num_layers if s == "L" else -1 for s in spec.shape]
        assert (tensor.dtype, [*tensor.shape]) == (getattr(rtx, spec.dtype), sizes)
    assert (whole.num_outputs, whole.get_output(0).name) == (1, contract.LOGITS)
    assert whole.get_output(0).dtype == rtx.float32


def test_the_profiles_cover_both_phases() -> None:
    limits = BuildConfig(max_batch_size=4, max_seq_len=1000, max_num_tokens=128)
    few, many = profiles(limits, SPARSE)
    shared = {"R": (0, 4, 32), "B": (1, 4, 4), "B+1": (2, 5, 5), "M": (1, 63, 63)}
    assert few == {"T": (1, 4, 32), "P": (0, 0, 1), **shared}
    assert many == {"T": (1, 128, 128), "P": (0, 1, 1), **shared}
    assert {s for spec in contract.INPUTS for s in spec.shape} == {*few, "L"}


@pytest.mark.parametrize("options", [TrtOptions(), TrtOptions(weight_streaming=True)])
def test_an_engine_directory_of_one_engine(
    options: TrtOptions, stand_in: tensorrt_stand_in.StandIn, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "checkpoint", "qwen3")
    limits = BuildConfig(executors=("tensorrt",), max_batch_size=4, max_num_tokens=128)
    build(source, tmp_path / "engine", limits, SPARSE, trt_options=options)
    engine = EngineDirectory(tmp_path / "engine")
    check_engine_file(engine.path / MODEL_ENGINE)
    assert not list(engine.path.glob("segment_*"))
    info = engine.config.build_info
    assert (info.tensorrt_flavour, info.tensorrt_version) == ("tensorrt", VERSION)
    (builder,) = stand_in.builders
    assert len(builder.networks[0].seams) == 2
    assert (engine.path / "tokenizer.json").exists()
    (engine.path / MODEL_ENGINE).unlink()
    with pytest.raises(EngineError, match=r"lacks model\.engine"):
        EngineDirectory(engine.path)


def test_the_command(
    stand_in: tensorrt_stand_in.StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_checkpoint(tmp_path / "checkpoint")
    common = ["build-engine", "--checkpoint_dir", str(source), "--output_dir", str(tmp_path / "e")]
    cache = tmp_path / "timing.cache"
    main([*common, "--executors", "tensorrt,torch", "--timing_cache", str(cache)])
    assert cache.exists()
    assert len(list((tmp_path / "e").glob("segment_*.safetensors"))) == 3
    capsys.readouterr()
    main(["inspect", str(tmp_path / "e")])
    assert "tensorrt 1." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*common, "--weight_streaming"])
    assert "--weight_streaming is for the executor tensorrt" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_import")
def test_without_tensorrt_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    source = tiny_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(EngineError, match=r"pip install 'trt-resa\[tensorrt\]'"):
        build(source, tmp_path / "engine", BuildConfig(executors=("tensorrt",)), SPARSE)
    assert not (tmp_path / "engine").exists()


def test_a_missing_plugin_is_said(
    stand_in: tensorrt_stand_in.StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "get_plugin_registry", rtx.get_plugin_registry)
    monkeypatch.setenv("TRT_RESA_PLUGIN_LIBRARY", str(tmp_path / "no.so"))
    from trt_resa.trt import plugin_creator

    with pytest.raises(EngineError, match=r"no\.so does not exist"):
        plugin_creator()


def test_the_fields_reach_a_creator_through_the_real_bindings() -> None:
    """A creator in Python reads the fields that were made for it."""
    seen: dict[str, float] = {}

    class Creator(rtx.IPluginCreatorV3One):
        def __init__(self) -> None:
            rtx.IPluginCreatorV3One.__init__(self)
            self.name = plugin_fields.PLUGIN_NAME
            self.plugin_version = plugin_fields.PLUGIN_VERSION
            self.plugin_namespace = plugin_fields.PLUGIN_NAMESPACE
            self.field_names = rtx.PluginFieldCollection([])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> str:
            assert phase == rtx.TensorRTPhase.BUILD
            kinds = {"int32": rtx.PluginFieldType.INT32, "float32": rtx.PluginFieldType.FLOAT32}
            for given, wanted in zip(fields, plugin_fields.FIELDS, strict=True):
                assert (given.name, given.type) == (wanted.name, kinds[wanted.kind])
                seen[given.name] = given.data.item()
            return f"plugin of {name}"

    model = tiny_model("qwen3")
    node = network_of(model, "float16").attention_nodes[1]
    values = plugin_fields.field_values(node, model, SPARSE)
    make = plugin_maker(rtx, LOG, Creator())
    assert make(node.output, values) == "plugin of layers.1.attention"
    assert seen == pytest.approx(values)
    assert seen["layer"] == 1


def test_a_refused_field_is_said() -> None:
    class Refusing:
        def create_plugin(self, *_: object) -> None:
            LOG.log(rtx.ILogger.ERROR, "keep_ratio is 2; it has to be at most 1")

    model = tiny_model()
    node = network_of(model, "float16").attention_nodes[0]
    make = plugin_maker(rtx, LOG, Refusing())
    with pytest.raises(EngineError, match=r"layers\.0\.attention refused .*keep_ratio is 2"):
        make(node.output, plugin_fields.field_values(node, model, SPARSE))


def test_the_built_plugin_takes_the_fields(
    stand_in: tensorrt_stand_in.StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin library in TensorRT-RTX's registry, as ``trt_resa.trt`` loads it."""
    try:
        library = find_library().with_name("libtrt_resa_plugin.so")
    except KernelLibraryError as error:
        pytest.skip(str(error))
    if not library.is_file():
        pytest.skip("the plugin library was not built")
    for name in ("get_plugin_registry", "PluginField", "PluginFieldCollection"):
        monkeypatch.setattr(stand_in, name, getattr(rtx, name))
    from trt_resa.trt import LOG as log
    from trt_resa.trt import plugin_creator

    make = plugin_maker(rtx, log, plugin_creator())
    for family in FAMILIES:
        model = tiny_model(family)
        for node in network_of(model, "float16").attention_nodes:
            values = plugin_fields.field_values(node, model, SPARSE)
            assert make(node.output, values) is not None
    with pytest.raises(EngineError, match="refused its fields"):
        make("layers.0.attention", {**values, "keep_ratio": 2.0})
