"""AWQ and GPTQ checkpoints keep their weights exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builder.dense_model import dense_logits
from tests.builder.quantized_files import quantize_checkpoint
from tests.checkpoints import edit_config, tiny_checkpoint
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.families import describe
from trt_resa.builder.weights import WeightLoader
from trt_resa.config import BuildConfig
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight, dequantize, unpack

METHODS = ("awq", "gptq", "gptq_v2")
BUILD = BuildConfig()
Q_PROJ = "model.layers.0.self_attn.q_proj"


def small(path, **overrides):
    return tiny_checkpoint(
        path, dtype=torch.float16, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, **overrides
    )  # fmt: skip


def load_all(checkpoint, build):
    description = describe(checkpoint, build)
    weights = [w for node in description.network.nodes for w in node.weights.values()]
    loaded = WeightLoader(checkpoint, description, build).load(weights)
    for weight in weights:
        tensor = loaded[weight.name]
        assert tuple(tensor.shape) == weight.shape, weight.name
        assert str(tensor.dtype) == f"torch.{weight.dtype}", weight.name
        assert tensor.is_contiguous(), weight.name
    return loaded


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_modules_are_read_exactly(tmp_path, method, symmetric):
    path = small(tmp_path)
    expected = quantize_checkpoint(path, method, symmetric)
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtype == "float16"
    for module, weight in expected.items():
        found = checkpoint.int4(module)
        assert torch.equal(
            unpack(found.qweight), torch.from_numpy(weight.nibbles - 8).to(torch.int8)
        )
        assert checkpoint.int4_has_offsets(module) is (not symmetric)
        assert (found.offsets is None) is symmetric
        np.testing.assert_allclose(dequantize(found).numpy(), weight.values(), atol=1e-7)
        assert checkpoint.shape(f"{module}.weight") == weight.nibbles.T.shape
        assert torch.equal(checkpoint.tensor(f"{module}.weight"), dequantize(found).T)


@pytest.mark.parametrize("method", METHODS)
def test_fused_linears_lie_side_by_side(tmp_path, method):
    path = small(tmp_path)
    expected = quantize_checkpoint(path, method)
    loaded = load_all(open_checkpoint(path), BUILD)
    for fused, parts in {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }.items():
        weights = [expected[f"model.layers.0.{part}"] for part in parts]
        tensors = [loaded[f"layers.0.{fused}.{key}"] for key in ("qweight", "scales", "offsets")]
        nibbles = np.concatenate([weight.nibbles for weight in weights], axis=1)
        assert torch.equal(unpack(tensors[0]), torch.from_numpy(nibbles - 8).to(torch.int8))
        scales = np.concatenate([weight.scales for weight in weights], axis=1)
        assert torch.equal(tensors[1], torch.from_numpy(scales))
        values = np.concatenate([weight.values() for weight in weights], axis=1)
        # Offsets are rounded to fp16: at most 8 scales of half a rounding.
        bound = 8 * scales.astype(np.float32).repeat(128, 0) * 2.0**-11
        assert (np.abs(dequantize(Int4Weight(*tensors)).numpy() - values) <= bound).all()


def test_symmetric_checkpoints_need_no_offsets(tmp_path):
    path = small(tmp_path)
    quantize_checkpoint(path, "gptq", symmetric=True)
    assert not any(name.endswith("offsets") for name in load_all(open_checkpoint(path), BUILD))


def test_the_network_computes_with_the_stored_weights(tmp_path):
    path = small(tmp_path / "awq")
    expected = quantize_checkpoint(path, "awq")
    plain = small(tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    for module, weight in expected.items():
        tensors[f"{module}.weight"] = torch.from_numpy(weight.values().T.copy())
    save_file(tensors, plain / "model.safetensors")
    ids = torch.arange(32)
    torch.testing.assert_close(dense_logits(path, ids), dense_logits(plain, ids))


@pytest.mark.parametrize(("quantization", "fused"), [("none", "weight"), ("w4a16", "qweight")])
def test_a_linear_of_plain_and_int4_parts_becomes_one_kind(tmp_path, quantization, fused):
    path = small(tmp_path)
    expected = quantize_checkpoint(path, "gptq", skip=("v_proj",))
    original = load_file(path / "model.safetensors")["model.layers.0.self_attn.v_proj.weight"]
    loaded = load_all(open_checkpoint(path), BuildConfig(quantization=quantization))
    assert f"layers.0.qkv.{fused}" in loaded
    if fused == "weight":
        q, _, v = loaded["layers.0.qkv.weight"].split((128, 64, 64))
        assert torch.equal(q, torch.from_numpy(expected[Q_PROJ].values().T).half())
        assert torch.equal(v, original)
    else:
        assert (loaded["layers.0.qkv.offsets"][:, -64:] == 0).all()


def test_modules_left_unquantized_stay_plain(tmp_path):
    path = small(tmp_path)
    skipped = {"modules_to_not_convert": ["mlp"]}
    quantize_checkpoint(path, "awq", skip=("mlp",), **skipped)
    loaded = load_all(open_checkpoint(path), BUILD)
    assert "layers.0.o.qweight" in loaded
    assert "layers.0.gate_up.weight" in loaded


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("awq", {"bits": 8}, "is quantized to 8 bits with group_size 128; supported are 4 bits"),
        ("gptq", {"group_size": 64}, "4 bits with group_size 64; supported"),
        ("gptq", {"group_size": -1}, "group_size -1"),
        ("awq", {"version": "gemv"}, "awq layout 'gemv'; supported are gemm"),
        ("gptq", {"checkpoint_format": "marlin"}, "layout 'marlin'; supported are gptq, gptq_v2"),
        ("gptq", {"quant_method": "fp8"}, "quantized with 'fp8', which is not supported"),
        ("gptq", {"dynamic": {"-:.*": {}}}, "settings per module"),
    ],
)
def test_other_quantizations_are_refused_in_one_sentence(tmp_path, method, changes, message):
    path = small(tmp_path)
    quantize_checkpoint(path, method, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def change_tensor(path, name, change):
    tensors = load_file(path / "model.safetensors")
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, path / "model.safetensors")


def test_an_order_of_groups_is_refused(tmp_path):
    path = small(tmp_path)
    quantize_checkpoint(path, "gptq", desc_act=True)
    describe(open_checkpoint(path), BUILD)  # desc_act with the trivial order changes nothing
    change_tensor(path, "model.layers.0.mlp.down_proj.g_idx", lambda order: order.flip(0))
    with pytest.raises(CheckpointError, match=r"down_proj was quantized with desc_act.*=false"):
        describe(open_checkpoint(path), BUILD)


def test_a_missing_part_is_named(tmp_path):
    path = small(tmp_path)
    quantize_checkpoint(path, "awq")
    change_tensor(path, f"{Q_PROJ}.scales", lambda scales: None)
    with pytest.raises(CheckpointError, match=rf"has no tensor {Q_PROJ}.scales"):
        load_all(open_checkpoint(path), BUILD)


def test_scales_of_other_groups_are_named(tmp_path):
    path = small(tmp_path)
    quantize_checkpoint(path, "awq")
    change_tensor(path, f"{Q_PROJ}.scales", lambda scales: scales.repeat(2, 1))
    with pytest.raises(
        CheckpointError, match=r"q_proj.scales unpacks to \[2, 128\], but .*\[1, 128"
    ):
        load_all(open_checkpoint(path), BUILD)


def test_a_qweight_of_another_shape_is_named(tmp_path):
    path = small(tmp_path)
    quantize_checkpoint(path, "awq")
    edit_config(path, intermediate_size=512)
    with pytest.raises(
        CheckpointError, match=r"gate_proj.weight has shape \[256, 128\].*\[512, 128"
    ):
        describe(open_checkpoint(path), BUILD)
