"""How many unseen answers a model gives right, all in one forward of each document."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch
from documents import TASKS, Documents, Kind
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@torch.inference_mode()
def score(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    length: int,
    count: int,
) -> dict[str, float]:
    """By task, the share of the answers in ``count`` documents whose tokens are all the likeliest.

    That is the share that greedy decoding gets right. Tasks that take more than ``length`` tokens
    are left out.
    """
    documents = Documents(lambda text: tokenizer.backend_tokenizer.encode(text).ids)
    found = {}
    with _uncompiled(model):
        for task in (each for each in TASKS if documents.fits(each, length)):
            rng, right = random.Random(f"score {task}"), list[bool]()
            for _ in range(count):
                ids, kinds = documents.task(task, rng, length)
                row = torch.tensor([ids], device=device)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    said = model(input_ids=row, use_cache=False).logits[0, :-1].argmax(-1)
                hits = (said == row[0, 1:]).tolist()
                right += [all(hits[start - 1 : end - 1]) for start, end in _answers(kinds)]
            found[task] = round(sum(right) / len(right), 4)
    return found


def _answers(kinds: list[int]) -> Iterator[tuple[int, int]]:
    """Beginning and end of each answer."""
    start = 0
    for at in range(1, len(kinds) + 1):
        if at == len(kinds) or (kinds[at] == Kind.CONTEXT) != (kinds[start] == Kind.CONTEXT):
            if kinds[start] != Kind.CONTEXT:
                yield start, at
            start = at


@contextlib.contextmanager
def _uncompiled(model: Qwen3ForCausalLM) -> Iterator[None]:
    """Documents differ in length: compiling for each is no gain."""
    compiled = [layer._compiled_call_impl for layer in model.model.layers]
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, each in zip(model.model.layers, compiled, strict=True):
            layer._compiled_call_impl = each
