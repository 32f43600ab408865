"""TensorRT-LLM checkpoints from Hugging Face ones, named as convert_checkpoint.py does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def trtllm_checkpoint(source: Path, path: Path, **changes: Any) -> Path:
    """Convert the one-file Hugging Face checkpoint ``source``; ``changes`` are keys of config.json.

    Tokenizer and generation_config.json are copied, as a user has to.
    """
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    save_file(converted(config, weights), path / "rank0.safetensors")
    written = converted_config(config) | changes
    (path / "config.json").write_text(json.dumps(written, indent=4))
    return path


def converted(config: dict, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {
        "transformer.vocab_embedding.weight": weights["model.embed_tokens.weight"],
        "transformer.ln_f.weight": weights["model.norm.weight"],
        "lm_head.weight": weights.get(
            "lm_head.weight", weights["model.embed_tokens.weight"].clone()
        ),
    }
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"transformer.layers.{layer}", f"model.layers.{layer}"
        attention = f"{theirs}.self_attn"
        for kind in ("weight", "bias"):
            if f"{attention}.q_proj.{kind}" in weights:
                out[f"{ours}.attention.qkv.{kind}"] = torch.cat(
                    [weights[f"{attention}.{part}_proj.{kind}"] for part in "qkv"]
                )
        if f"{attention}.q_norm.weight" in weights:
            out[f"{ours}.attention.q_layernorm.weight"] = weights[f"{attention}.q_norm.weight"]
            out[f"{ours}.attention.k_layernorm.weight"] = weights[f"{attention}.k_norm.weight"]
        out[f"{ours}.attention.dense.weight"] = weights[f"{attention}.o_proj.weight"]
        out[f"{ours}.mlp.gate.weight"] = weights[f"{theirs}.mlp.up_proj.weight"]
        out[f"{ours}.mlp.fc.weight"] = weights[f"{theirs}.mlp.gate_proj.weight"]
        out[f"{ours}.mlp.proj.weight"] = weights[f"{theirs}.mlp.down_proj.weight"]
        out[f"{ours}.input_layernorm.weight"] = weights[f"{theirs}.input_layernorm.weight"]
        out[f"{ours}.post_layernorm.weight"] = weights[f"{theirs}.post_attention_layernorm.weight"]
    return out


def converted_config(config: dict) -> dict[str, Any]:
    rope = dict(config["rope_parameters"])
    base = rope.pop("rope_theta")
    return {
        "architecture": config["architectures"][0],
        "dtype": "float32",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "hidden_act": config["hidden_act"],
        "logits_dtype": "float32",
        "norm_epsilon": config["rms_norm_eps"],
        "runtime_defaults": None,
        "position_embedding_type": "rope_gpt_neox",
        "num_key_value_heads": config["num_key_value_heads"],
        "intermediate_size": config["intermediate_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "mapping": {"world_size": 1, "gpus_per_node": 8, "cp_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128},
        "use_parallel_embedding": False,
        "head_size": config["head_dim"],
        "qk_layernorm": False,
        "rotary_embedding_dim": config["head_dim"],
        "mlp_bias": False,
        "attn_bias": config["model_type"] == "qwen2",
        "rotary_base": base,
        "rotary_scaling": None if rope["rope_type"] == "default" else rope,
        "moe": {"num_experts": 0, "top_k": 0, "normalization_mode": None},
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
