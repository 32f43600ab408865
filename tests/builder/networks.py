"""Small networks with random weights, and their nodes in plain torch as the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from trt_resa.builder.families import decoder
from trt_resa.builder.graph import Graph
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS
from trt_resa.int4 import Int4Weight, dequantize
from trt_resa.model_config import ModelConfig, RopeConfig
from trt_resa.network import Network, Node, Segment, Weight

#: What each family adds to the shared decoder.
FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
TORCH_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def tiny_model(family: str = "llama", **changes: object) -> ModelConfig:
    fields = dict(
        model_type=family,
        vocab_size=320,
        hidden_size=256,
        intermediate_size=384,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        rope=RopeConfig(theta=10000.0, rotary_dim=64),
        **FAMILIES[family],
    )
    return ModelConfig(**{**fields, **changes})


def network_of(model: ModelConfig, dtype: str, int4: str | None = None) -> Network:
    """``int4``: None, ``symmetric``, or ``offsets`` for every linear but the head."""

    def form(modules: object, rows: Sequence[int], k: int) -> bool | None:
        if int4 is None or list(rows) == [model.vocab_size]:
            return None
        return int4 == "offsets"

    graph = Graph(model, dtype, form)
    output = decoder(graph, model)
    return Network((INPUT_IDS, LOGIT_ROWS), (output,), tuple(graph.nodes))


def random_weights(weights: object, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one, so that errors show."""
    generator = torch.Generator().manual_seed(seed)
    return {weight.name: _random(weight, generator) for weight in weights}


def _random(weight: Weight, generator: torch.Generator) -> torch.Tensor:
    if weight.dtype == "uint8":
        return torch.randint(0, 256, weight.shape, generator=generator, dtype=torch.uint8)
    values = torch.randn(weight.shape, generator=generator)
    role = weight.name.rpartition(".")[2]
    if role == "scales":  # q is uniform in [-8, 7], its rms 4.6
        values = values.abs().add(0.5) / (4.6 * (128 * weight.shape[0]) ** 0.5)
    elif role == "offsets":
        values = values / (128 * weight.shape[0]) ** 0.5
    elif len(weight.shape) == 1:
        values = 1 + values / 4
    else:
        values = values / weight.shape[1] ** 0.5
    return values.to(TORCH_TYPES[weight.dtype])


def run_segment(
    segment: Segment, weights: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The segment's outputs in fp32, from its stored weights and inputs."""
    values = {
        name: value.float() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    for node in segment.nodes:
        own = {role: weights[weight.name] for role, weight in node.weights.items()}
        values[node.output] = _run(node, own, [values[name] for name in node.inputs])
    return {name: values[name] for name in segment.outputs}


def _run(node: Node, own: dict[str, torch.Tensor], x: list[torch.Tensor]) -> torch.Tensor:
    if node.op == "embedding":
        return own["weight"].float()[x[0]]
    if node.op == "rms_norm":
        eps = node.attributes["eps"]
        return x[0] * torch.rsqrt(x[0].square().mean(-1, True) + eps) * own["weight"].float()
    if node.op == "linear":
        if "qweight" in own:
            w = dequantize(Int4Weight(own["qweight"], own["scales"], own.get("offsets")))
        else:
            w = own["weight"].float().t()
        return x[0] @ w + (own["bias"].float() if "bias" in own else 0)
    if node.op == "swiglu":
        gate, up = x[0].chunk(2, dim=-1)
        return gate * gate.sigmoid() * up
    if node.op == "add":
        return x[0] + x[1]
    if node.op == "gather_rows":
        return x[0][x[1]]
    raise AssertionError(node.op)
