"""Weights of a network: fusion, element types, refusal of damaged numbers, memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import tiny_checkpoint
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.families import describe
from trt_resa.builder.weights import WeightLoader, resolve_dtype
from trt_resa.config import BuildConfig
from trt_resa.errors import CheckpointError
from trt_resa.int4 import Int4Weight, dequantize

FLOAT32 = BuildConfig(dtype="float32", executors=("torch",))


def load_all(path, build=FLOAT32):
    checkpoint = open_checkpoint(path)
    description = describe(checkpoint, build)
    loader = WeightLoader(checkpoint, description, build)
    loaded = {}
    for segment in description.network.segments():
        loaded |= loader.load(segment.weights)
    for node in description.network.attention_nodes:
        loaded |= loader.load(node.weights.values())
    for node in description.network.nodes:
        for weight in node.weights.values():
            tensor = loaded[weight.name]
            assert tuple(tensor.shape) == weight.shape, weight.name
            assert str(tensor.dtype) == f"torch.{weight.dtype}", weight.name
            assert tensor.is_contiguous(), weight.name
    return loaded


def set_element(path, name, value):
    tensors = load_file(path / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, path / "model.safetensors")


def test_fused_weights_and_biases_keep_the_order(tmp_path):
    path = tiny_checkpoint(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    loaded, tensors = load_all(path), load_file(path / "model.safetensors")
    at = "model.layers.1."
    for name, parts in {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "o": ("self_attn.o_proj",),
        "down": ("mlp.down_proj",),
    }.items():
        for kind in ("weight", "bias"):
            expected = torch.cat([tensors[f"{at}{part}.{kind}"] for part in parts])
            assert torch.equal(loaded[f"layers.1.{name}.{kind}"], expected)


def test_norms_and_embedding_are_copied(tmp_path):
    path = tiny_checkpoint(tmp_path, "qwen3", tie=True)
    loaded, tensors = load_all(path), load_file(path / "model.safetensors")
    for name, source in {
        "embedding.weight": "model.embed_tokens.weight",
        "lm_head.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "layers.0.input_norm.weight": "model.layers.0.input_layernorm.weight",
        "layers.0.mlp_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "layers.0.q_norm.weight": "model.layers.0.self_attn.q_norm.weight",
        "layers.0.k_norm.weight": "model.layers.0.self_attn.k_norm.weight",
    }.items():
        assert torch.equal(loaded[name], tensors[source])


def test_shards_and_one_file_load_alike(tmp_path):
    whole = load_all(tiny_checkpoint(tmp_path / "whole", "qwen2"))
    sharded = load_all(tiny_checkpoint(tmp_path / "sharded", "qwen2", shards=4))
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, "auto", "float16"),
        (torch.bfloat16, "auto", "bfloat16"),
        (torch.float16, "auto", "float16"),
        (torch.float16, "bfloat16", "bfloat16"),
        (torch.bfloat16, "float32", "float32"),
    ],
)
def test_element_types(tmp_path, stored, asked, expected):
    path = tiny_checkpoint(tmp_path, dtype=stored)
    build = BuildConfig(dtype=asked, executors=("torch",))
    assert resolve_dtype(open_checkpoint(path), build) == expected
    found = load_all(path, build)["layers.0.o.weight"]
    original = load_file(path / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(found, original.to(getattr(torch, expected)))


def test_w4a16_rounds_the_stored_weights(tmp_path):
    path = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    loaded = load_all(path, BuildConfig(quantization="w4a16"))
    tensors = load_file(path / "model.safetensors")
    parts = [tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    scales = loaded["layers.0.qkv.scales"]
    error = dequantize(Int4Weight(loaded["layers.0.qkv.qweight"], scales)) - torch.cat(parts).T
    bound = scales.float().repeat_interleave(128, 0) * (0.5 + 7 * torch.finfo(scales.dtype).eps)
    assert (error.abs() <= bound).all()


@pytest.mark.parametrize("quantization", ["none", "w4a16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused_by_name(tmp_path, value, quantization):
    path = tiny_checkpoint(tmp_path)
    set_element(path, "model.layers.1.mlp.up_proj.weight", value)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or Inf"):
        load_all(path, BuildConfig(quantization=quantization))


def test_numbers_beyond_float16_are_refused_with_the_way_out(tmp_path):
    path = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    set_element(path, "model.norm.weight", -70000.0)
    load_all(path, BuildConfig(dtype="bfloat16"))
    with pytest.raises(CheckpointError, match=r"norm.weight holds 70144, beyond float16.*bfloat16"):
        load_all(path, BuildConfig(dtype="float16"))


def test_loaded_tensors_do_not_share_memory_with_the_file(tmp_path):
    path = tiny_checkpoint(tmp_path)
    loaded = load_all(path)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(tmp_path) not in maps.read()
    (path / "model.safetensors").write_bytes(b"")
    assert loaded["norm.weight"].isfinite().all()


def test_only_the_weights_asked_for_come_back(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    build = BuildConfig(quantization="w4a16")
    description = describe(checkpoint, build)
    node = next(node for node in description.network.nodes if node.op == "linear")
    loader = WeightLoader(checkpoint, description, build)
    assert list(loader.load([node.weights["scales"]])) == ["layers.0.qkv.scales"]
