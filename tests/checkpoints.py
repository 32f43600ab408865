"""Tiny random checkpoints, as Hugging Face saves them, for every test that needs a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

#: By the ``rope`` argument of ``tiny_checkpoint``.
ROPE: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}

#: Vocabulary of ``byte_tokenizer``: the 256 bytes, then these.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
EOS_TOKEN_ID = 256


def tiny_checkpoint(
    path: Path,
    family: str = "llama",
    rope: str = "none",
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    tie: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random model of ``family`` (a model_type) and a byte-level tokenizer to ``path``.

    256 hidden, 2 layers, 4 query and 2 KV heads of 64, 259 tokens, 2,048 positions. ``overrides``
    are keys of the family's configuration class. Weights are larger than at a usual
    initialization, so that logits of different tokens differ well beyond rounding.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tie,
        "initializer_range": 0.08,
        "bos_token_id": None,
        "eos_token_id": EOS_TOKEN_ID,
        "rope_parameters": dict(ROPE[rope]),
    }
    if family == "mistral":
        values["sliding_window"] = None
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values | overrides))
        _randomize_vectors(model)
    finally:
        torch.random.set_rng_state(state)
    model = model.to(dtype)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    model.save_pretrained(path, max_shard_size=size if shards == 1 else size // shards + 1)
    byte_tokenizer().save_pretrained(path)
    return Path(path)


def large_checkpoint(path: Path, layers: int) -> Path:
    """A Llama of about 20 MB a layer in fp16, one shard each, of constants: quick to write."""
    from safetensors.torch import load_file, save_file

    tiny = tiny_checkpoint(
        path, hidden_size=1024, intermediate_size=3072, num_hidden_layers=1, dtype=torch.float16
    )
    tensors = load_file(tiny / "model.safetensors")
    (tiny / "model.safetensors").unlink()
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    prefix = "model.layers.0."
    shared = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    files = {"model-shared.safetensors": shared}
    for layer in range(layers):
        files[f"model-{layer}.safetensors"] = {
            name.replace(prefix, f"model.layers.{layer}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    for name, content in files.items():
        save_file(content, tiny / name, metadata={"format": "pt"})
    index = {tensor: name for name, content in files.items() for tensor in content}
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return tiny


def _randomize_vectors(model: torch.nn.Module) -> None:
    """Norm weights away from 1 and biases away from 0, so that a dropped one is noticed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.1 * torch.randn_like(parameter))


def byte_tokenizer() -> Any:
    """A fast tokenizer without merges: a token per byte of UTF-8, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def edit_config(path: Path, **changes: Any) -> None:
    """Change keys of a checkpoint's config.json; a key set to ``...`` is removed."""
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    file.write_text(json.dumps(kept), encoding="utf-8")
