"""Trains the small model that ``trt-resa eval`` is shown on, from nothing, on one GPU.

    python benchmarks/quality_model/train.py --output_dir build/quality_model

A Qwen3 of 6 million parameters with 16K context learns the tasks of ``trt-resa eval`` (other seeds)
and texts of the machine, first in short contexts, then in long ones. The time is the budget: the
learning rate and the context follow the share of ``--minutes`` that has passed. Writes a Hugging
Face checkpoint in fp16, ``train_log.jsonl``, and ``score.json`` with the share of unseen documents
whose answers are all the likeliest tokens.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from documents import TEXT, WEIGHTS, Documents, Kind
from rows import Rows, train_tokenizer
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Recipe:
    """``stages``: context, and the share of the time at which its stage ends."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 704
    layers: int = 8
    heads: int = 4
    stages: tuple[tuple[int, float], ...] = ((1024, 0.3), (4096, 0.6), (16384, 1.0))
    tokens_per_step: int = 65536
    learning_rate: float = 2e-3
    #: Of the mean loss of each Kind, in their order.
    loss_weights: tuple[float, ...] = (0.1, 1.0, 1.0, 0.3)


FULL = Recipe()
TINY = Recipe(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=96,
    layers=2,
    heads=2,
    stages=((512, 0.5), (1024, 1.0)),
    tokens_per_step=2048,
)


def make_model(recipe: Recipe, end: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=recipe.stages[-1][0],
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config)


def losses(model: Qwen3ForCausalLM, ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the tokens of each Kind [kinds]; 0 where a kind does not occur."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden).float()
    each = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    mine = functional.one_hot(kinds[:, 1:].flatten().long(), len(Kind)).float()
    return (each @ mine) / mine.sum(0).clamp(min=1)


def rate(progress: float, step: int) -> float:
    """Share of the full learning rate: 200 steps up, then a cosine down to a hundredth."""
    return min(1.0, (step + 1) / 200) * (0.505 + 0.495 * math.cos(math.pi * min(1.0, progress)))


def train(
    recipe: Recipe,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    progress: Callable[[int], float],
    seed: int,
    workers: int,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """``progress``: from the number of steps done to the share of the training that is done."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    start, step, tokens = time.monotonic(), 0, 0
    for length, end in recipe.stages:
        batches = _batches(recipe, tokenizer, length, seed, workers)
        while (done := progress(step)) < end:
            ids, kinds = (tensor.to(device, non_blocking=True) for tensor in next(batches))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate(done, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                by_kind = losses(model, ids, kinds)
            (by_kind @ torch.tensor(recipe.loss_weights, device=device)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, tokens = step + 1, tokens + ids[:, 1:].numel()
            if step % 50 == 1 or progress(step) >= end:
                log(
                    {
                        "step": step,
                        "length": length,
                        "tokens": tokens,
                        "seconds": round(time.monotonic() - start, 1),
                        "loss": {
                            kind.name.lower(): round(value, 4)
                            for kind, value in zip(Kind, by_kind.tolist(), strict=True)
                        },
                    }
                )


def _batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, length: int, seed: int, workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = Rows(tokenizer, length, max(1, recipe.tokens_per_step // length), seed)
    return iter(
        torch.utils.data.DataLoader(
            rows,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


@torch.inference_mode()
def score(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    length: int,
    count: int,
) -> dict[str, float]:
    """By task, the share of ``count`` unseen documents whose answers are the likeliest tokens."""
    documents = Documents(lambda text: tokenizer.backend_tokenizer.encode(text).ids)
    found = {}
    for task in WEIGHTS:
        if task == TEXT:
            continue
        rng, right = random.Random(f"score {task}"), 0
        for _ in range(count):
            ids, kinds = documents.task(task, rng, length)
            row = torch.tensor([ids], device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                said = model(input_ids=row, use_cache=False).logits[0, :-1].argmax(-1)
            wanted = torch.tensor(kinds[1:], device=device) != Kind.CONTEXT
            right += bool((said == row[0, 1:])[wanted].all())
        found[task] = right / count
    return found


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """A copy in fp16, so that training can go on in fp32."""
    half = Qwen3ForCausalLM(model.config).to(torch.float16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(output)
    tokenizer.save_pretrained(output)


@click.command()
@click.option("--output_dir", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", type=float, default=13.0, show_default=True, help="training time")
@click.option("--steps", type=int, help="so many steps instead of --minutes")
@click.option("--tiny", is_flag=True, help="a tiny model in short contexts, to try the script")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", type=int, help="processes that write documents [default: by CPUs]")
@click.option("--compile/--no_compile", "compiled", default=True, show_default=True)
@click.option("--scored", type=int, default=50, show_default=True, help="documents per task")
def main(
    output_dir: Path,
    minutes: float,
    steps: int | None,
    tiny: bool,
    seed: int,
    device: str,
    workers: int | None,
    compiled: bool,
    scored: int,
) -> None:
    start = time.monotonic()
    recipe, target = TINY if tiny else FULL, torch.device(device)
    # Each worker encodes by itself; the library's own threads would only contend.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if workers is None:
        workers = max(1, min(14, len(os.sched_getaffinity(0)) - 2))
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(recipe.vocab_size)
    model = make_model(recipe, tokenizer.eos_token_id).to(target)
    if compiled:
        # One layer's code serves all; a compilation per stage's shape.
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    size = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"{size / 1e6:.2f} million parameters, {size * 2 / 2**20:.2f} MiB in fp16")
    with (output_dir / "train_log.jsonl").open("w", encoding="utf-8") as file:

        def log(entry: dict[str, Any]) -> None:
            print(json.dumps(entry), file=file, flush=True)
            click.echo(entry)

        def progress(step: int) -> float:
            return (time.monotonic() - start) / (60 * minutes) if steps is None else step / steps

        train(recipe, model, tokenizer, target, progress, seed, workers, log)
    save(model, tokenizer, output_dir)
    for layer in model.model.layers:
        layer._compiled_call_impl = None  # documents differ in length: compiling each is no gain
    lengths = sorted({recipe.stages[-1][0] // 4, recipe.stages[-1][0]})
    scores = {str(each): score(model.eval(), tokenizer, target, each, scored) for each in lengths}
    content = {"seed": seed, "minutes": round((time.monotonic() - start) / 60, 2), "right": scores}
    (output_dir / "score.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
