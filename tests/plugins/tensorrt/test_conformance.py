"""The plugin through its interface, as TensorRT drives it at build and load; without a GPU."""

from __future__ import annotations

import dataclasses

import pytest

from tests.plugins.tensorrt.conformance import (
    BF16,
    FLOAT,
    HALF,
    INPUTS,
    INT8,
    INT32,
    INT64,
    Host,
    Plugin,
    Shapes,
    Tensor,
)
from tests.plugins.tensorrt.fields import GOOD
from trt_resa import plugin_fields

LINEAR, CHW32 = 0, 5
IMPOSSIBLE = 1 << 60


def created(host: Host, **changes: float) -> Plugin:
    plugin = host.create(GOOD | changes)
    assert plugin is not None, host.messages()
    return plugin


def test_inputs_are_the_builders() -> None:
    expected = (plugin_fields.QKV, *plugin_fields.INPUTS, *plugin_fields.NORM_INPUTS)
    assert expected == INPUTS


def test_every_interface_answers_for_itself(host: Host) -> None:
    identity = (
        "PLUGIN 1.0, PLUGIN_V3ONE_CORE 1.0, PLUGIN_V3ONE_BUILD 1.0, PLUGIN_V3ONE_RUNTIME 1.0, "
        "trt_resa::ReSAAttention 1"
    )
    plugin = created(host)
    clone = plugin.clone()
    assert plugin.identity() == identity
    assert clone is not None
    del plugin
    assert clone.identity() == identity


def test_reasons_reach_the_hosts_logger(host: Host) -> None:
    assert host.create({**GOOD, "block_size": 17}) is None
    assert "block_size is not 16, 32 or 64" in host.messages()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("model_type", [HALF, BF16])
def test_formats(host: Host, norm: bool, model_type: int) -> None:
    plugin = created(host)
    tensors = Shapes(norm=norm, model_type=model_type).tensors()
    linear = [LINEAR] * len(tensors)
    for position, tensor in enumerate(tensors):
        assert plugin.accepts(position, tensors, linear)
        other = [*linear]
        other[position] = CHW32
        assert not plugin.accepts(position, tensors, other)
        for kind in {FLOAT, HALF, INT8, INT32, BF16, INT64} - {tensor.type}:
            changed = [*tensors]
            changed[position] = Tensor.of(kind, tensor.shape)
            allowed = position == 0 and kind in (HALF, BF16)
            assert plugin.accepts(position, changed, linear) == allowed, (position, kind)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("model_type", [HALF, BF16])
def test_output(host: Host, norm: bool, model_type: int) -> None:
    """Its rows are the very expression of qkv's rows, its columns a constant."""
    shapes = Shapes(norm=norm, model_type=model_type)
    tensors = shapes.tensors()
    tensors[0].dims[0] = -1
    made = created(host).output(tensors)
    assert made is not None, host.messages()
    assert made.type == model_type
    assert made.shape == (-2, 28 * 128)


def test_wrong_number_of_inputs(host: Host) -> None:
    plugin = created(host)
    tensors = Shapes().tensors()
    assert plugin.output([*tensors, tensors[0]]) is None
    assert "it takes 9, or 11 with QK norm" in host.messages()
    assert created(host, norm_eps=0.0).output(Shapes(norm=True).tensors()) is None
    assert "norm_eps must be positive" in host.messages()


def test_profiles(host: Host) -> None:
    plugin = created(host)
    for shapes in (Shapes(), Shapes(rows=8192, phase=1), Shapes(batch=1, rows=1, blocks=1)):
        assert plugin.configure(shapes.tensors()), host.messages()


WRONG = {
    "qkv": ([8, 100], "dimension 1 of qkv is 100; it must be 4608"),
    "position_ids": ([9], "dimension 0 of position_ids is 9; it must be 8"),
    "cu_query_lens": ([8], "dimension 0 of cu_query_lens is 8; it must be 9"),
    "kv_lens": ([8, 1], "kv_lens has 2 dimensions; it must have 1"),
    "block_table": ([7, 512], "dimension 0 of block_table is 7; it must be 8"),
    "phase": ([2], "dimension 0 of phase is 2; from 0 to 1 is allowed"),
    "kv_pool": ([5], "dimension 0 of kv_pool is 5; from 6 to"),
    "summary_pool": ([27], "dimension 0 of summary_pool is 27; it must be 28"),
    "inv_freq": ([128], "dimension 0 of inv_freq is 128; it must be 64"),
    "q_norm": ([64], "dimension 0 of q_norm is 64; it must be 128"),
    "k_norm": ([64], "dimension 0 of k_norm is 64; it must be 128"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_wrong_shapes_are_refused_with_a_reason(host: Host, name: str) -> None:
    shape, reason = WRONG[name]
    plugin = created(host, layer=5)
    tensors = Shapes(norm=True).tensors()
    index = INPUTS.index(name)
    tensors[index] = Tensor.of(tensors[index].type, shape)
    assert not plugin.configure(tensors)
    assert reason in host.messages()
    assert plugin.workspace(tensors) == IMPOSSIBLE
    assert not plugin.shape(tensors)
    assert reason in host.messages()


def test_workspace_of_sparse_steps(host: Host) -> None:
    """Grows with the profile, holds the rows of q at least, and clones agree."""
    plugin = created(host)
    clone = plugin.clone()
    assert clone is not None
    before = 0
    for batch, blocks in ((1, 64), (8, 64), (8, 8192), (64, 8192)):
        shapes = Shapes(rows=batch, batch=batch, blocks=blocks).tensors()
        size = plugin.workspace(shapes)
        assert before < size < IMPOSSIBLE, host.messages()
        assert size > batch * 28 * 128 * 2
        assert clone.workspace(shapes) == size
        before = size


def test_a_profile_that_no_kernel_takes(host: Host) -> None:
    plugin = created(host)
    assert plugin.workspace(Shapes(batch=257, rows=257).tensors()) == IMPOSSIBLE
    assert "an extent is out of range" in host.messages()


def test_an_engine_keeps_every_field(host: Host) -> None:
    changes = {"layer": 7, "keep_ratio": 0.15, "sink_blocks": 2, "dense_below": 4096}
    reloaded = host.reload(created(host, **changes))
    assert reloaded is not None, host.messages()
    again = host.reload(reloaded)
    assert again is not None
    shapes = Shapes().tensors()
    assert reloaded.workspace(shapes) == created(host, **changes).workspace(shapes)
    few_layers = dataclasses.replace(Shapes(), layers=7).tensors()
    assert not again.shape(few_layers)
    assert "dimension 0 of kv_pool is 7; from 8 to" in host.messages()


def test_sparse_steps_are_sized_without_a_gpu(host: Host) -> None:
    attached = created(host).attach()
    assert attached is not None, host.messages()
    assert attached.shape(Shapes().tensors()), host.messages()
    assert attached.shape(Shapes(batch=3, rows=3).tensors()), host.messages()


def test_enqueue_wants_the_announced_shapes(host: Host) -> None:
    """Nothing is launched: the addresses are never looked at."""
    attached = created(host).attach()
    assert attached is not None
    tensors = Shapes().tensors()
    inputs = [256] * 9
    assert not attached.enqueue(tensors, inputs, 256, 256, 0)
    assert "not preceded by onShapeChange" in host.messages()
    assert attached.shape(tensors)
    assert not attached.enqueue(Shapes(batch=4, rows=4).tensors(), inputs, 256, 256, 0)
    assert "not preceded by onShapeChange" in host.messages()
