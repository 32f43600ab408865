"""Fields of a layer that the plugin accepts: Qwen2.5-7B's first."""

from __future__ import annotations

from trt_resa.plugin_fields import FIELDS

GOOD: dict[str, int | float] = {
    "layer": 0,
    "q_heads": 28,
    "kv_heads": 4,
    "head_dim": 128,
    "block_size": 16,
    "rotary_dim": 128,
    "rope_scale": 1.0,
    "norm_eps": 1e-6,
    "softmax_scale": 128**-0.5,
    "keep_ratio": 0.1,
    "min_blocks": 16,
    "local_blocks": 1,
    "sink_blocks": 0,
    "dense_below": 0,
}

KINDS = {field.name: field.kind for field in FIELDS}
