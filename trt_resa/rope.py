"""Inverse frequencies and attention factor of every supported RoPE scaling.

Sources: RoFormer (arXiv 2104.09864), linear position interpolation (arXiv 2306.15595), YaRN (arXiv
2309.00071), and the Llama 3.1 model card for llama3. Tests compare with ``transformers``.
"""

from __future__ import annotations

import math

import torch

from trt_resa.model_config import RopeConfig


def inverse_frequencies(rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """``(inv_freq, attention_factor)``: fp32 [rotary_dim / 2], and the factor on cos and sin."""
    exponent = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    inv_freq = 1.0 / (rope.theta**exponent)
    if rope.scaling == "linear":
        return inv_freq / rope.factor, 1.0
    if rope.scaling == "llama3":
        return _llama3(inv_freq, rope), 1.0
    if rope.scaling == "yarn":
        return _yarn(inv_freq, rope), _yarn_attention_factor(rope)
    return inv_freq, 1.0


def _llama3(inv_freq: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Long wavelengths are stretched by ``factor``, short ones kept, the band between blended."""
    assert rope.original_max_position_embeddings is not None
    turns = rope.original_max_position_embeddings * inv_freq / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    kept = ((turns - rope.low_freq_factor) / span).clamp(0, 1)
    return (1 - kept) * inv_freq / rope.factor + kept * inv_freq


def _yarn(inv_freq: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Dimensions that turn often are kept, slow ones interpolated, with a linear ramp between."""
    assert rope.original_max_position_embeddings is not None
    original = rope.original_max_position_embeddings

    def dimension_of(turns: float) -> float:
        return (
            rope.rotary_dim
            * math.log(original / (turns * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)
    interpolated = ramp.clamp(0, 1)
    return interpolated * inv_freq / rope.factor + (1 - interpolated) * inv_freq


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
