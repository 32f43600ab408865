"""Published model shapes by name, for benchmarks on random weights.

Sources: the ``config.json`` of meta-llama/Llama-3.1-8B and Llama-3.2-1B, Qwen/Qwen2.5-7B and
Qwen/Qwen3-8B on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping

from trt_resa.errors import ConfigError
from trt_resa.model_config import ModelConfig, RopeConfig
from trt_resa.validation import replace


def _llama3_rope(factor: float, head_dim: int) -> RopeConfig:
    return RopeConfig(
        theta=500000.0,
        rotary_dim=head_dim,
        scaling="llama3",
        factor=factor,
        original_max_position_embeddings=8192,
    )


SHAPES: Mapping[str, ModelConfig] = {
    "llama-3.1-8b": ModelConfig(
        model_type="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        rope=_llama3_rope(8.0, 128),
    ),
    "llama-3.2-1b": ModelConfig(
        model_type="llama",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        rope=_llama3_rope(32.0, 64),
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": ModelConfig(
        model_type="qwen2",
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        rms_norm_eps=1e-6,
        max_position_embeddings=131072,
        rope=RopeConfig(theta=1e6, rotary_dim=128),
        qkv_bias=True,
    ),
    "qwen3-8b": ModelConfig(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        max_position_embeddings=40960,
        rope=RopeConfig(theta=1e6, rotary_dim=128),
        qk_norm=True,
    ),
}


def shape(name: str, max_seq_len: int | None = None) -> ModelConfig:
    """The model called ``name``; with ``max_seq_len``, one that is made for so many positions.

    Raises ConfigError for an unknown name.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape '{name}' is not known; choose from {', '.join(SHAPES)}")
    model = SHAPES[name]
    longest = max(model.max_position_embeddings, max_seq_len or 0)
    return replace(model, {"max_position_embeddings": longest}, f"shape {name}")
