"""Writes GGUF files as llama.cpp's converter lays them out, from a tiny Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from trt_resa.builder.checkpoint import open_checkpoint

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    checkpoint: Path,
    arch: str = "llama",
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write ``checkpoint``, a directory of one safetensors file, to ``path``.

    ``metadata`` adds or replaces integer, float, string or list values by full key; None removes
    one. ``tensors`` adds tensors. Matrices take the type ``quantization``.
    """
    model = open_checkpoint(checkpoint).model
    values: dict[str, Any] = {
        f"{arch}.block_count": model.num_layers,
        f"{arch}.context_length": model.max_position_embeddings,
        f"{arch}.embedding_length": model.hidden_size,
        f"{arch}.feed_forward_length": model.intermediate_size,
        f"{arch}.attention.head_count": model.num_heads,
        f"{arch}.attention.head_count_kv": model.num_kv_heads,
        f"{arch}.attention.key_length": model.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": model.rms_norm_eps,
        f"{arch}.rope.freq_base": model.rope.theta,
        f"{arch}.rope.dimension_count": model.rope.rotary_dim,
        "tokenizer.ggml.eos_token_id": 256,
    } | (metadata or {})
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if arch == "llama" and ".q_proj." in name:
            tensor = permute(tensor, model.num_heads)
        if arch == "llama" and ".k_proj." in name:
            tensor = permute(tensor, model.num_kv_heads)
        kind = quantization if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(_gguf_name(name), data, raw_dtype=kind)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Row 2 i of a head is row i of its first half, row 2 i + 1 row i of its second."""
    per_head = tensor.shape[0] // heads
    order = [
        head * per_head + half * per_head // 2 + i
        for head in range(heads)
        for i in range(per_head // 2)
        for half in (0, 1)
    ]
    return tensor[order].contiguous()


def _gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        layer, _, part = module.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"
