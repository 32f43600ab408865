"""The network of every family against transformers, through the torch executor in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builder.quantized_files import quantize_checkpoint
from tests.checkpoints import ROPE, tiny_checkpoint
from tests.conftest import build_torch_engine
from tests.driver import OneSequence
from trt_resa import LLM
from trt_resa.reference.compare import relative_error
from trt_resa.runtime.tokenizer import TextTokenizer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def executor_logits(engine: Path, tokens: list[int], split: int) -> torch.Tensor:
    """Logits of all positions: a prefill of ``split`` tokens, dense passes of 1 and the rest."""
    with LLM(engine, device="cpu", kv_cache_config={"max_tokens": 1024}) as llm:
        sequence = OneSequence(llm._executor, 16, len(tokens))
        parts = [(0, split), (split, split + 1), (split + 1, len(tokens))]
        return torch.cat([sequence.dense(tokens, start, stop) for start, stop in parts])


def worst_row(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return max(relative_error(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_agree_with_transformers(family: str, rope: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", family, rope, tie=family == "qwen2")
    engine = build_torch_engine(checkpoint, tmp_path / "engine")
    # Past the original 512 positions, so that a scaling that is not applied is seen.
    tokens = torch.randint(0, 256, (700,), generator=torch.Generator().manual_seed(1)).tolist()
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    assert worst_row(executor_logits(engine, tokens, 600), expected) <= 1e-4


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_int4_checkpoints_agree_with_their_dequantized_weights(method: str, tmp_path: Path) -> None:
    """AWQ and GPTQ files, through an engine directory, against a plain model of the same values."""
    from transformers import AutoModelForCausalLM

    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "qwen2")
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for module, weight in quantize_checkpoint(checkpoint, method).items():
        values = torch.from_numpy(weight.values()).T
        oracle.get_submodule(module).weight.data = values.contiguous()
    engine = build_torch_engine(checkpoint, tmp_path / "engine")
    tokens = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    assert worst_row(executor_logits(engine, tokens, 40), expected) <= 1e-4


@pytest.mark.slow
def test_the_real_model_agrees_with_transformers(
    smol_engine: Path, smol_transformers: Any, smol_checkpoint: Path
) -> None:
    text = " ".join(Path(__file__).parent.parent.joinpath("LICENSE").read_text().split())
    tokenizer = TextTokenizer.load(smol_engine)
    assert tokenizer is not None
    tokens = tokenizer.encode(text)[:1000]
    assert len(tokens) == 1000
    with torch.inference_mode():
        expected = smol_transformers(torch.tensor([tokens])).logits[0]
    assert worst_row(executor_logits(smol_engine, tokens, 900), expected) <= 1e-4
