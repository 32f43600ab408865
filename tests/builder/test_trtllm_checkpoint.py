"""TensorRT-LLM checkpoints: the same model, tensors and logits as their Hugging Face source."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builder.trtllm_files import trtllm_checkpoint
from tests.checkpoints import tiny_checkpoint
from tests.conftest import build_torch_engine
from tests.driver import OneSequence
from trt_resa import LLM
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.trtllm_checkpoint import WEIGHTS, TrtllmCheckpoint
from trt_resa.errors import CheckpointError


def logits(checkpoint: Path, engine: Path) -> torch.Tensor:
    tokens = list(range(40))
    with LLM(build_torch_engine(checkpoint, engine), device="cpu") as llm:
        return OneSequence(llm._executor, 16, len(tokens)).dense(tokens, 0, len(tokens))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("family", "rope"),
    [("llama", "llama3"), ("mistral", "none"), ("qwen2", "yarn"), ("qwen3", "linear")],
)
def test_it_is_the_same_model(family: str, rope: str, tie: bool, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", family, rope, tie=tie)
    path = trtllm_checkpoint(source, tmp_path / "trtllm")
    expected, found = open_checkpoint(source), open_checkpoint(path)
    assert isinstance(found, TrtllmCheckpoint)
    assert found.model == expected.model
    assert found.dtype == "float32"
    assert found.sliding_window is None
    for name, tensor in load_file(source / "model.safetensors").items():
        assert found.shape(name) == tuple(tensor.shape), name
        assert torch.equal(found.tensor(name), tensor), name
    assert torch.equal(logits(path, tmp_path / "e"), logits(source, tmp_path / "f"))


def test_the_older_name_of_qwen(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", "qwen2")
    changes = {"architecture": "QWenForCausalLM", "qwen_type": "qwen2"}
    path = trtllm_checkpoint(source, tmp_path / "trtllm", **changes)
    assert open_checkpoint(path).model == open_checkpoint(source).model


def test_a_head_that_is_not_stored_is_the_embedding(tmp_path: Path) -> None:
    path = trtllm_checkpoint(tiny_checkpoint(tmp_path / "hf"), tmp_path / "trtllm")
    weights = load_file(path / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, path / WEIGHTS)
    assert open_checkpoint(path).model.tie_word_embeddings


def test_missing_end_tokens_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = trtllm_checkpoint(tiny_checkpoint(tmp_path / "hf"), tmp_path / "trtllm")
    (path / "generation_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(path).model.eos_token_ids == ()
    assert "generation_config.json" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}}, "of 2 ranks .* --tp_size 1"),
        ({"quantization": {"quant_algo": "W4A16_AWQ"}}, "quantized with W4A16_AWQ"),
        ({"architecture": "GPTForCausalLM"}, "architecture 'GPTForCausalLM'.*LlamaForCausalLM"),
        ({"architecture": "QWenForCausalLM", "qwen_type": "qwen"}, "qwen_type qwen2 or qwen3"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
        ({"moe": {"num_experts": 8}}, "mixture of experts"),
    ],
)
def test_other_kinds_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    path = trtllm_checkpoint(source, tmp_path / "trtllm", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_a_second_rank_is_refused(tmp_path: Path) -> None:
    path = trtllm_checkpoint(tiny_checkpoint(tmp_path / "hf"), tmp_path / "trtllm")
    (path / "rank1.safetensors").write_bytes((path / WEIGHTS).read_bytes())
    with pytest.raises(CheckpointError, match="2 ranks"):
        open_checkpoint(path)


def test_a_qkv_tensor_of_another_model_is_refused(tmp_path: Path) -> None:
    path = trtllm_checkpoint(tiny_checkpoint(tmp_path / "hf"), tmp_path / "trtllm")
    config = json.loads((path / "config.json").read_text())
    config["num_key_value_heads"] = 1
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"shape \[512, 256\]"):
        build_torch_engine(path, tmp_path / "engine")


def test_a_missing_tensor_is_named_both_ways(tmp_path: Path) -> None:
    path = trtllm_checkpoint(tiny_checkpoint(tmp_path / "hf"), tmp_path / "trtllm")
    weights = load_file(path / WEIGHTS)
    del weights["transformer.layers.1.mlp.fc.weight"]
    save_file(weights, path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.fc\.weight .*gate_proj"):
        build_torch_engine(path, tmp_path / "engine")
