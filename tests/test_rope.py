"""Inverse frequencies and attention factors equal those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trt_resa.builder.rope_parameters import rope_config
from trt_resa.errors import CheckpointError
from trt_resa.rope import inverse_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "llama3.2": LLAMA3 | {"factor": 32.0},
    "llama3 of the whole length": {k: v for k, v in LLAMA3.items() if "original" not in k},
    "yarn": YARN,
    "yarn betas": YARN | {"beta_fast": 16, "beta_slow": 2},
    "yarn not truncated": YARN | {"truncate": False},
    "yarn attention factor": YARN | {"attention_factor": 0.7},
    "yarn mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn of factor 1": YARN | {"factor": 1.0},
}


def expected(parameters, theta, head_dim):
    """What transformers computes for a Llama configuration with these RoPE parameters."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=32768,
        rope_parameters=dict(parameters) | {"rope_theta": theta},
    )
    if parameters["rope_type"] == "default":
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / theta**exponent, 1.0
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")


def ours(config, head_dim=128):
    config = {"max_position_embeddings": 32768} | config
    return inverse_frequencies(rope_config(config, head_dim, Path("model")))


def assert_equal(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    assert found[1] == pytest.approx(wanted[1], rel=1e-7)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("theta", [10000.0, 1000000.0])
@pytest.mark.parametrize("case", CASES)
def test_rope_parameters_equal_transformers(case, theta, head_dim):
    parameters = CASES[case]
    found = ours({"rope_parameters": parameters | {"rope_theta": theta}}, head_dim)
    assert_equal(found, expected(parameters, theta, head_dim))


@pytest.mark.parametrize("case", CASES)
def test_the_older_layout_means_the_same(case):
    scaling = {("type" if k == "rope_type" else k): v for k, v in CASES[case].items()}
    found = ours({"rope_theta": 500000.0, "rope_scaling": scaling})
    assert_equal(found, ours({"rope_parameters": CASES[case] | {"rope_theta": 500000.0}}))


def test_no_rope_keys_mean_theta_10000():
    assert_equal(ours({"rope_scaling": None}), ours({"rope_theta": 10000.0}))


@pytest.mark.parametrize(
    "config",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ],
)
def test_partial_rotary_factor_halves_the_rotary_dim(config):
    assert ours(config)[0].shape == (32,)


def test_yarn_without_factor_takes_the_ratio_of_lengths():
    without = {key: value for key, value in YARN.items() if key != "factor"}
    assert_equal(ours({"rope_parameters": without}), ours({"rope_parameters": YARN}))


def test_an_original_length_beside_the_parameters_wins():
    found = rope_config(
        {
            "max_position_embeddings": 32768,
            "original_max_position_embeddings": 4096,
            "rope_scaling": YARN,
        },
        128,
        Path("model"),
    )
    assert found.original_max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "RoPE type 'dynamic' is not supported; supported are default, none, linear, llama3",
        ),
        ({"rope_scaling": {"type": "linear"}}, "RoPE type linear needs the key factor"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": None}}, "needs the key low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "for all layers"),
        ({"rope_scaling": ["yarn"]}, "rope_scaling must hold"),
        ({"rope_theta": -1.0}, "theta"),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor 1.5 must be in \(0, 1\]"),
        ({"partial_rotary_factor": 0.39}, "rotary_dim"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(config, message):
    with pytest.raises(CheckpointError, match=message):
        ours(config)
