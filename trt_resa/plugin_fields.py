"""The attention plugin as TensorRT and ONNX name it: its fields, inputs and output.

Everything that makes an attention node for TensorRT reads this module, and the plugin's C++ parses
the same names. Every field is required and an unknown one is refused.

Inputs, in order: the qkv rows of the layer, then the tensors of ``INPUTS``, then for a model with
QK norm those of ``NORM_INPUTS``. The one output is the attention rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trt_resa import contract
from trt_resa.config import SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.model_config import ModelConfig
from trt_resa.network import Node
from trt_resa.rope import inverse_frequencies

PLUGIN_NAME = "ReSAAttention"
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "trt_resa"

QKV = "qkv"
INV_FREQ = "inv_freq"
Q_NORM = "q_norm"
K_NORM = "k_norm"

#: After ``qkv`` [T, qkv_size]. ``inv_freq`` is a constant, float32 [rotary_dim / 2].
INPUTS = (
    contract.POSITION_IDS,
    contract.CU_QUERY_LENS,
    contract.KV_LENS,
    contract.BLOCK_TABLE,
    contract.PHASE,
    contract.KV_POOL,
    contract.SUMMARY_POOL,
    INV_FREQ,
)
#: Constants in the type of ``qkv``, [head_dim] each.
NORM_INPUTS = (Q_NORM, K_NORM)

FieldKind = Literal["int32", "float32"]


@dataclass(frozen=True)
class PluginField:
    """A scalar field; ``meaning`` is what docs and messages say of it."""

    name: str
    kind: FieldKind
    meaning: str


FIELDS = (
    PluginField("layer", "int32", "index into kv_pool and summary_pool"),
    PluginField("q_heads", "int32", "query heads"),
    PluginField("kv_heads", "int32", "key and value heads"),
    PluginField("head_dim", "int32", "columns of a head"),
    PluginField("block_size", "int32", "tokens per block"),
    PluginField("rotary_dim", "int32", "columns of a head that RoPE rotates"),
    PluginField("rope_scale", "float32", "factor of cos and sin"),
    PluginField("norm_eps", "float32", "epsilon of the QK norms"),
    PluginField("softmax_scale", "float32", "factor of the scores"),
    PluginField("keep_ratio", "float32", "fraction of blocks a sparse step attends to"),
    PluginField("min_blocks", "int32", "a sparse step attends to at least this many blocks"),
    PluginField("local_blocks", "int32", "last blocks that are always in"),
    PluginField("sink_blocks", "int32", "first blocks that are always in"),
    PluginField("dense_below", "int32", "sequences of at most this many tokens attend to all"),
)


def shortest_decimal(value: float) -> float:
    """The double that the shortest decimal of a float32 stands for: 0.1 of 0.1f.

    The number of selected blocks is a product in double precision, and ceil(0.1f * 10) is 2. A
    float32 field therefore carries keep_ratio's decimal digits, and who reads the field takes them.
    """
    return float(str(np.float32(value)))


def field_values(
    node: Node, model: ModelConfig, sparse: SparseAttentionConfig
) -> Mapping[str, int | float]:
    """The value of every field for an attention node, in the order of ``FIELDS``.

    Raises ConfigError when keep_ratio has more digits than its field carries.
    """
    if shortest_decimal(sparse.keep_ratio) != sparse.keep_ratio:
        raise ConfigError(
            f"keep_ratio {sparse.keep_ratio!r} has more digits than the TensorRT plugin's field "
            f"carries; give six significant digits, such as {sparse.keep_ratio:.6g}"
        )
    values: dict[str, int | float] = {
        "layer": int(node.attributes["layer"]),
        "q_heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "block_size": sparse.block_size,
        "rotary_dim": model.rope.rotary_dim,
        "rope_scale": inverse_frequencies(model.rope)[1],
        "norm_eps": float(node.attributes["eps"]),
        "softmax_scale": model.head_dim**-0.5,
        "keep_ratio": sparse.keep_ratio,
        "min_blocks": sparse.min_blocks,
        "local_blocks": sparse.local_blocks,
        "sink_blocks": sparse.sink_blocks,
        "dense_below": sparse.dense_below,
    }
    return {field.name: values[field.name] for field in FIELDS}
