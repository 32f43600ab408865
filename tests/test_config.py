from __future__ import annotations

import re

import pytest

from trt_resa.config import BuildConfig, KvCacheConfig, SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.model_config import ModelConfig
from trt_resa.sampling_params import SamplingParams
from trt_resa.validation import parse, replace

MODEL = {
    "model_type": "llama", "vocab_size": 10, "hidden_size": 64, "intermediate_size": 64,
    "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "rope": {"theta": 1e4, "rotary_dim": 64},
}  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (SparseAttentionConfig, {"keep_ratio": 0.0}, "keep_ratio = 0.0: .*greater than 0"),
        (SparseAttentionConfig, {"keep_ratio": 1.5}, "keep_ratio = 1.5: .*less than or equal to 1"),
        (SparseAttentionConfig, {"keep_ratio": float("nan")}, "keep_ratio = nan"),
        (SparseAttentionConfig, {"block_size": 17}, "block_size = 17: .*16, 32 or 64"),
        (SparseAttentionConfig, {"sparsity": 0.1}, "unknown key 'sparsity'; allowed keys: .*keep_"),
        (SparseAttentionConfig, {"min_blocks": 2, "sink_blocks": 2}, "exceeds min_blocks = 2"),
        (SparseAttentionConfig, {"rectify_mode": "maybe"}, "rectify_mode = 'maybe'"),
        (BuildConfig, {"dtype": "float32"}, "float32 is for the torch executor alone"),
        (BuildConfig, {"max_batch_size": 9, "max_num_tokens": 8}, "exceeds max_num_tokens 8"),
        (BuildConfig, {"max_seq_len": 4, "max_input_len": 8}, "max_input_len 8 exceeds"),
        (BuildConfig, {"executors": ("torch", "torch")}, "names one twice"),
        (KvCacheConfig, {"free_gpu_memory_fraction": 0}, "free_gpu_memory_fraction = 0"),
        (SamplingParams, {"temperature": -1}, "temperature = -1"),
        (SamplingParams, {"max_tokens": 0}, "max_tokens = 0"),
        (SamplingParams, {"stop": ""}, "a stop string is empty"),
        (ModelConfig, MODEL | {"head_dim": 80}, "head_dim 80 is not supported; .*64, 96, 128, 256"),
        (ModelConfig, MODEL | {"num_heads": 3, "num_kv_heads": 2}, "3 is not a multiple"),
        (ModelConfig, MODEL | {"num_heads": 17}, "17 query heads per KV head"),
        (ModelConfig, {k: v for k, v in MODEL.items() if k != "rope"}, "'rope' is missing"),
    ],
)
def test_bad_values_give_one_sentence(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(cls, values, "here")
    text = str(error.value)
    assert text.startswith("here: ")
    assert "\n" not in text
    assert re.search(message, text), text


def test_replace_validates_again() -> None:
    config = SparseAttentionConfig()
    assert replace(config, {"keep_ratio": 0.2}, "x").keep_ratio == 0.2
    with pytest.raises(ConfigError, match="keep_ratio"):
        replace(config, {"keep_ratio": 2}, "x")


def test_one_stop_string_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
