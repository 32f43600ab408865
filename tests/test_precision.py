"""What is kept in fp32 in a network of 16 bits: residual stream, logits, what is added up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builder.networks import network_of, tiny_model
from tests.checkpoints import tiny_checkpoint
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.families import describe
from trt_resa.config import BuildConfig
from trt_resa.contract import LOGITS
from trt_resa.runtime.executors.operators import compile_node
from trt_resa.values import value_specs

STREAM = ("embedding", "layers.0.attention_residual", "layers.1.mlp_residual", "last_rows")
NARROW = ("layers.0.input_norm", "layers.0.qkv", "layers.0.attention", "layers.1.swiglu", "norm")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_residual_stream_and_the_logits_are_in_fp32(dtype: str) -> None:
    model = tiny_model()
    specs = value_specs(network_of(model, dtype), model, dtype)
    assert {specs[name].dtype for name in (*STREAM, LOGITS)} == {"float32"}
    assert {specs[name].dtype for name in NARROW} == {dtype}


def test_int4_networks_keep_the_stream_in_their_dtype() -> None:
    model = tiny_model()
    specs = value_specs(network_of(model, "float16", "symmetric"), model, "float16")
    assert {specs[name].dtype for name in (*STREAM, *NARROW)} == {"float16"}
    assert specs[LOGITS].dtype == "float32"


def test_one_int4_linear_that_adds_to_the_stream_decides_for_all(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, intermediate_size=320))
    network = describe(checkpoint, BuildConfig(dtype="float16", quantization="w4a16")).network
    specs = value_specs(network, checkpoint.model, "float16")
    weights = {node.output: set(node.weights) for node in network.nodes}
    assert weights["layers.0.o"] == {"qweight", "scales"}
    assert weights["layers.0.down"] == {"weight"}
    assert {specs[name].dtype for name in STREAM} == {"float16"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_operators_return_the_type_that_the_network_says(dtype: torch.dtype) -> None:
    model, name = tiny_model("qwen2"), str(dtype).removeprefix("torch.")
    network = network_of(model, name)
    specs = value_specs(network, model, name)
    for node in network.nodes:
        if node.op == "attention":
            continue
        weights = {r: torch.randn(w.shape).to(dtype) for r, w in node.weights.items()}
        inputs = [_value(specs[name]) for name in node.inputs]
        found = compile_node(node, weights)(*inputs)
        assert str(found.dtype) == f"torch.{specs[node.output].dtype}", node.output


def _value(spec) -> torch.Tensor:
    if spec.columns is None:
        return torch.arange(3)
    return torch.randn(5, spec.columns).to(getattr(torch, spec.dtype))


def test_a_wide_linear_is_not_rounded() -> None:
    """4096 + 1 is no number of fp16."""
    model = tiny_model()
    nodes = {node.output: node for node in network_of(model, "float16").nodes}
    x = torch.zeros(1, model.hidden_size, dtype=torch.float16)
    x[0, :2] = torch.tensor([4096.0, 1.0])
    for name, expected in (("layers.0.o", 4097.0), ("layers.0.qkv", 4096.0)):
        weight = torch.ones(nodes[name].weights["weight"].shape, dtype=torch.float16)
        assert compile_node(nodes[name], {"weight": weight})(x)[0, 0].item() == expected


def test_the_norm_of_the_stream_reads_it_in_fp32() -> None:
    model = tiny_model()
    norm = next(n for n in network_of(model, "float16").nodes if n.op == "rms_norm")
    stream = torch.full((1, model.hidden_size), 1e5)  # above the range of fp16
    weight = torch.ones(model.hidden_size, dtype=torch.float16)
    found = compile_node(norm, {"weight": weight})(stream)
    np.testing.assert_array_equal(found.numpy(), np.ones((1, model.hidden_size), np.float16))
