"""Every family's network computes what transformers computes, in the documented order."""

from __future__ import annotations

import pytest
import torch

from tests.builder.dense_model import dense_logits
from tests.checkpoints import ROPE, edit_config, tiny_checkpoint
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.families import FAMILIES, describe
from trt_resa.config import BuildConfig
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS, LOGITS
from trt_resa.errors import CheckpointError, ConfigError

BUILD = BuildConfig(max_seq_len=1024)


def transformers_logits(path, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        return model(ids[None]).logits[0]


def assert_same_logits(path, length=96, **build):
    ids = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(path, ids)
    torch.testing.assert_close(dense_logits(path, ids, **build), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_network_computes_the_logits_of_transformers(tmp_path, family):
    assert_same_logits(tiny_checkpoint(tmp_path, family))


@pytest.mark.parametrize("rope", [rope for rope in ROPE if rope != "none"])
def test_rope_scalings_compute_the_logits_of_transformers(tmp_path, rope):
    assert_same_logits(tiny_checkpoint(tmp_path, "llama", rope=rope), length=640)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_attention_heads": 4, "hidden_size": 192, "head_dim": 64}),
        ("qwen3", {"attention_bias": True, "head_dim": 128}),
    ],
)
def test_variants_compute_the_logits_of_transformers(tmp_path, family, overrides):
    assert_same_logits(tiny_checkpoint(tmp_path, family, tie=True, **overrides))


def test_nodes_are_in_the_documented_order(tmp_path):
    network = describe(open_checkpoint(tiny_checkpoint(tmp_path)), BUILD).network
    layer = ["rms_norm", "linear", "attention", "linear", "add"]
    layer += ["rms_norm", "linear", "swiglu", "linear", "add"]
    tail = ["gather_rows", "rms_norm", "linear"]
    assert [node.op for node in network.nodes] == ["embedding", *layer, *layer, *tail]
    assert network.inputs == (INPUT_IDS, LOGIT_ROWS)
    assert network.outputs == (LOGITS,)


def test_segments_pass_qkv_and_the_residual(tmp_path):
    network = describe(open_checkpoint(tiny_checkpoint(tmp_path)), BUILD).network
    first, middle, last = network.segments()
    assert first.inputs == (INPUT_IDS,)
    assert first.outputs == ("embedding", "layers.0.qkv")
    assert middle.inputs == ("layers.0.attention", "embedding")
    assert middle.outputs == ("layers.0.mlp_residual", "layers.1.qkv")
    assert last.outputs == (LOGITS,)


def test_weights_have_the_documented_names_and_shapes(tmp_path):
    path = tiny_checkpoint(tmp_path, "qwen3", attention_bias=True)
    network = describe(open_checkpoint(path), BUILD).network
    shapes = {w.name: w.shape for node in network.nodes for w in node.weights.values()}
    assert shapes["embedding.weight"] == shapes["lm_head.weight"] == (259, 256)
    assert shapes["layers.1.qkv.weight"] == (512, 256)
    assert shapes["layers.1.qkv.bias"] == (512,)
    assert shapes["layers.1.o.weight"] == (256, 256)
    assert shapes["layers.1.o.bias"] == (256,)
    assert shapes["layers.1.gate_up.weight"] == (768, 256)
    assert shapes["layers.1.down.weight"] == (256, 384)
    assert shapes["layers.1.q_norm.weight"] == shapes["layers.1.k_norm.weight"] == (64,)
    assert "layers.1.down.bias" not in shapes


def test_attention_nodes_carry_layer_and_eps(tmp_path):
    nodes = describe(open_checkpoint(tiny_checkpoint(tmp_path)), BUILD).network.attention_nodes
    assert [node.attributes for node in nodes] == [{"layer": i, "eps": 1e-5} for i in (0, 1)]


def test_a_tied_head_comes_from_the_embedding(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, tie=True))
    sources = describe(checkpoint, BUILD).sources
    assert sources["lm_head.weight"] == sources["embedding.weight"]


def test_int4_is_kept_from_linears_whose_inputs_do_not_fill_blocks(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, intermediate_size=320))
    network = describe(checkpoint, BuildConfig(quantization="w4a16")).network
    weights = {node.output: sorted(node.weights) for node in network.nodes if node.op == "linear"}
    assert weights["layers.0.qkv"] == ["qweight", "scales"]
    assert weights["layers.0.gate_up"] == ["qweight", "scales"]
    assert weights["layers.0.down"] == ["weight"]
    assert weights["logits"] == ["weight"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 512}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 512}),
    ],
)
def test_a_sliding_window_below_max_seq_len_is_refused(tmp_path, family, changes):
    path = tiny_checkpoint(tmp_path, family)
    edit_config(path, **changes)
    checkpoint = open_checkpoint(path)
    with pytest.raises(ConfigError, match=r"window of 512 tokens.*--max_seq_len 512"):
        describe(checkpoint, BUILD)
    describe(checkpoint, BuildConfig(max_seq_len=512))


def test_a_switched_off_sliding_window_is_no_window(tmp_path):
    path = tiny_checkpoint(tmp_path, "qwen2")
    edit_config(path, use_sliding_window=False, sliding_window=512)
    assert open_checkpoint(path).sliding_window is None


def test_a_shape_that_contradicts_the_configuration_is_refused(tmp_path):
    path = tiny_checkpoint(tmp_path)
    edit_config(path, intermediate_size=512)
    with pytest.raises(CheckpointError, match=r"gate_proj.weight has shape \[384, 256\].*\[512"):
        describe(open_checkpoint(path), BUILD)


def test_a_missing_tensor_is_named(tmp_path):
    path = tiny_checkpoint(tmp_path)
    edit_config(path, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"has no tensor model.layers.2.input_layernorm"):
        describe(open_checkpoint(path), BUILD)
