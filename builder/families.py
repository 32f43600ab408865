"""The supported model families, and the network of each.

A family is one entry of ``FAMILIES``: what it adds to the shared decoder, and the config.json keys
that switch it on. A model whose checkpoint has other tensor names than ``LAYER`` and ``decoder``
use needs a decoder function of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_resa.builder.graph import Graph
from trt_resa.builder.weights import resolve_dtype
from trt_resa.config import BuildConfig
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS, LOGITS
from trt_resa.errors import CheckpointError, ConfigError
from trt_resa.model_config import ModelConfig
from trt_resa.network import INT4_BLOCK, Network

if TYPE_CHECKING:
    from trt_resa.builder.checkpoint import Checkpoint


@dataclass(frozen=True)
class Family:
    """What a family adds to the decoder: always (True), never, or when a config.json key is true.

    ``head_dim`` is the size of a head where config.json does not mention it; None: hidden_size /
    num_attention_heads.
    """

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    sliding_window: bool | str = False
    head_dim: int | None = None


#: By ``model_type`` of config.json.
FAMILIES: Mapping[str, Family] = {
    "llama": Family(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Family(sliding_window=True),
    "qwen2": Family(qkv_bias=True, sliding_window="use_sliding_window"),
    "qwen3": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        sliding_window="use_sliding_window",
        head_dim=128,
    ),
}

EMBEDDING = "model.embed_tokens"
LM_HEAD = "lm_head"


@dataclass(frozen=True)
class Description:
    """A network, and where its weights come from.

    ``sources`` maps a weight of the network to the checkpoint tensors that are concatenated along
    dim 0; for the three tensors of an INT4 linear, those are the tensors before quantization.
    ``shapes`` are the checkpoint tensors' own shapes.
    """

    network: Network
    sources: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, tuple[int, ...]]


def decoder(graph: Graph, model: ModelConfig) -> str:
    """Emit a pre-norm decoder with a gated MLP; returns its output, the logits of LOGIT_ROWS."""
    q, kv = model.attention_size, model.num_kv_heads * model.head_dim
    hidden_size, inner = model.hidden_size, model.intermediate_size

    # The residual stream is in fp32 where no kernel of an INT4 linear adds to it.
    wide = not any(
        graph.is_int4(f"model.layers.{i}.{module}", hidden_size, k)
        for i in range(model.num_layers)
        for module, k in (("self_attn.o_proj", q), ("mlp.down_proj", inner))
    )
    hidden = graph.embedding("embedding", INPUT_IDS, EMBEDDING, wide)
    for i in range(model.num_layers):
        at = f"layers.{i}"
        attn, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"

        x = graph.rms_norm(f"{at}.input_norm", hidden, f"model.layers.{i}.input_layernorm")
        qkv = [f"{attn}.q_proj", f"{attn}.k_proj", f"{attn}.v_proj"]
        x = graph.linear(f"{at}.qkv", x, qkv, [q, kv, kv], hidden_size, bias=model.qkv_bias)
        x = graph.attention(f"{at}.attention", x, i, f"{attn}.q_norm", f"{attn}.k_norm")
        o = [f"{attn}.o_proj"]
        x = graph.linear(f"{at}.o", x, o, [hidden_size], q, bias=model.output_bias, wide=wide)
        hidden = graph.add(f"{at}.attention_residual", hidden, x)

        post = f"model.layers.{i}.post_attention_layernorm"
        x = graph.rms_norm(f"{at}.mlp_norm", hidden, post)
        gate_up = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        x = graph.linear(
            f"{at}.gate_up", x, gate_up, [inner, inner], hidden_size, bias=model.mlp_bias
        )
        x = graph.swiglu(f"{at}.swiglu", x)
        down = [f"{mlp}.down_proj"]
        x = graph.linear(
            f"{at}.down", x, down, [hidden_size], inner, bias=model.mlp_bias, wide=wide
        )
        hidden = graph.add(f"{at}.mlp_residual", hidden, x)

    # Rows are gathered before the last norm: the norm and the head then touch no other row.
    x = graph.gather_rows("last_rows", hidden, LOGIT_ROWS)
    x = graph.rms_norm("norm", x, "model.norm")
    head = EMBEDDING if model.tie_word_embeddings else LM_HEAD
    return graph.linear(
        "lm_head", x, [head], [model.vocab_size], hidden_size, wide=True, output=LOGITS
    )


def describe(checkpoint: Checkpoint, build: BuildConfig) -> Description:
    """The network of a checkpoint, and the checkpoint tensors behind each of its weights.

    Reads no weight data, except the zero points of AWQ and GPTQ modules. Raises CheckpointError
    when a tensor is missing or its shape contradicts config.json, ConfigError when the model cannot
    be built with these limits.
    """
    model = checkpoint.model
    _check_sliding_window(checkpoint, build)

    def int4_form(modules: Sequence[str], rows: Sequence[int], k: int) -> bool | None:
        if modules[0] in (EMBEDDING, LM_HEAD):
            return None
        forms = [checkpoint.int4_has_offsets(module) for module in modules]
        fits = k % INT4_BLOCK == 0 and all(n % 2 == 0 for n in rows)
        if None not in forms or (build.quantization == "w4a16" and fits):
            return any(forms)
        return None

    graph = Graph(model, resolve_dtype(checkpoint, build), int4_form)
    output = decoder(graph, model)
    for name, expected in graph.shapes.items():
        found = checkpoint.shape(name)
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name} has shape {list(found)}, but the configuration "
                f"of the model asks for {list(expected)}; they are of different models"
            )
    network = Network((INPUT_IDS, LOGIT_ROWS), (output,), tuple(graph.nodes))
    return Description(network, graph.sources, graph.shapes)


def _check_sliding_window(checkpoint: Checkpoint, build: BuildConfig) -> None:
    """Within its window, sliding-window attention is full attention; beyond it, it is not ours."""
    window = checkpoint.sliding_window
    length = build.max_seq_len or checkpoint.model.max_position_embeddings
    if window is not None and window < length:
        raise ConfigError(
            f"{checkpoint.path} uses a sliding window of {window} tokens, which is not supported "
            f"beyond the window, and max_seq_len is {length}; build with --max_seq_len {window} or "
            "less"
        )
