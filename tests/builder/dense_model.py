"""Evaluates a described network over one sequence with plain dense attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.families import describe
from trt_resa.builder.weights import WeightLoader
from trt_resa.config import BuildConfig
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS, LOGITS
from trt_resa.int4 import Int4Weight, dequantize
from trt_resa.model_config import ModelConfig
from trt_resa.network import Node
from trt_resa.reference.rotary import cos_sin, rms_norm, rotate
from trt_resa.rope import inverse_frequencies


def dense_logits(path, ids: torch.Tensor, **build) -> torch.Tensor:
    """Logits [T, vocab] of a checkpoint's network for the tokens ``ids`` [T]; fp32 by default."""
    build = {"dtype": "float32", "executors": ("torch",)} | build
    config = BuildConfig(**build)
    checkpoint = open_checkpoint(path)
    description = describe(checkpoint, config)
    weights = WeightLoader(checkpoint, description, config).load(
        weight for node in description.network.nodes for weight in node.weights.values()
    )
    values = {INPUT_IDS: ids, LOGIT_ROWS: torch.arange(len(ids))}
    for node in description.network.nodes:
        inputs = [values[name] for name in node.inputs]
        own = {key: weights[weight.name] for key, weight in node.weights.items()}
        values[node.output] = _evaluate(node, inputs, own, checkpoint.model)
    return values[LOGITS]


def _evaluate(
    node: Node, inputs: list[torch.Tensor], weights: dict[str, torch.Tensor], model: ModelConfig
) -> torch.Tensor:
    x = inputs[0]
    if node.op == "embedding":
        return weights["weight"][x]
    if node.op == "rms_norm":
        return rms_norm(x, weights["weight"], node.attributes["eps"])
    if node.op == "linear":
        weight = weights.get("weight")
        if weight is None:
            parts = (weights[key] for key in ("qweight", "scales"))
            weight = dequantize(Int4Weight(*parts, weights.get("offsets"))).T.to(x.dtype)
        return F.linear(x, weight, weights.get("bias"))
    if node.op == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    if node.op == "add":
        return x + inputs[1]
    if node.op == "gather_rows":
        return x[inputs[1]]
    assert node.op == "attention"
    return _attention(node, x, weights, model)


def _attention(
    node: Node, qkv: torch.Tensor, weights: dict[str, torch.Tensor], model: ModelConfig
) -> torch.Tensor:
    heads, kv_heads = model.num_heads, model.num_kv_heads
    q, k, v = qkv.unflatten(-1, (-1, model.head_dim)).split((heads, kv_heads, kv_heads), dim=1)
    if weights:
        q = rms_norm(q, weights["q_norm"], node.attributes["eps"])
        k = rms_norm(k, weights["k_norm"], node.attributes["eps"])
    cos, sin = cos_sin(torch.arange(len(qkv)), *inverse_frequencies(model.rope))
    q, k, v = (part.transpose(0, 1) for part in (rotate(q, cos, sin), rotate(k, cos, sin), v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return attended.transpose(0, 1).flatten(1)
