"""config.json as ModelConfig: defaults of transformers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_resa.builder.hf_config import eos_token_ids, model_config
from trt_resa.errors import CheckpointError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}


def parsed(eos=(), **changes):
    config = {key: value for key, value in (LLAMA | changes).items() if value is not ...}
    return model_config(config, eos, Path("model"))


def test_absent_keys_take_the_defaults_of_transformers():
    model = parsed()
    assert (model.num_kv_heads, model.head_dim, model.rms_norm_eps) == (8, 64, 1e-6)
    assert not any((model.tie_word_embeddings, model.qkv_bias, model.mlp_bias, model.qk_norm))
    assert model.rope.theta == 10000.0


@pytest.mark.parametrize(
    ("model_type", "qkv", "output", "qk_norm", "head_dim"),
    [
        ("llama", False, False, False, 64),
        ("mistral", False, False, False, 64),
        ("qwen2", True, False, False, 64),
        ("qwen3", False, False, True, 128),
    ],
)
def test_families_differ_in_biases_norms_and_head_dim(model_type, qkv, output, qk_norm, head_dim):
    model = parsed(model_type=model_type)
    found = (model.qkv_bias, model.output_bias, model.qk_norm, model.head_dim)
    assert found == (qkv, output, qk_norm, head_dim)


def test_llama_attention_bias_covers_qkv_and_output():
    model = parsed(attention_bias=True)
    assert model.qkv_bias
    assert model.output_bias
    assert not model.mlp_bias


def test_yarn_raises_the_longest_sequence():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert parsed(rope_scaling=scaling).max_position_embeddings == 8192


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 3}, (1, 2)),
        ({}, {"eos_token_id": 3}, (3,)),
        ({"eos_token_id": None}, {"eos_token_id": [3]}, (3,)),
        ({"eos_token_id": 0}, {"eos_token_id": 3}, (0,)),
        ({}, {}, ()),
    ],
)
def test_eos_comes_from_the_generation_config_first(generation, config, ids):
    assert eos_token_ids(generation, config) == ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2', which is not supported; supported are llama"),
        ({"model_type": ...}, "model_type None"),
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            r"'mixtral' \(a mixture of experts\), which is not supported; supported are llama, mis",
        ),
        ({"vocab_size": ...}, "its configuration lacks the key vocab_size"),
        ({"hidden_size": "512"}, "its configuration has '512' for hidden_size"),
        ({"num_key_value_heads": 0}, "has 0 for num_key_value_heads"),
        ({"num_key_value_heads": 3}, "num_heads 8 is not a multiple of num_kv_heads 3"),
        ({"head_dim": 80}, "head_dim 80 is not supported; the kernels take 64, 96, 128, 256"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; silu is"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        parsed(**changes)
    assert "\n" not in str(caught.value)
