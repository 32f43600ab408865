"""Trains the small model that ``trt-resa eval`` is shown on, from nothing, on one GPU.

    python benchmarks/quality_model/train.py --output_dir build/quality_model

A Qwen3 of 6 million parameters with 16K context learns the tasks of ``trt-resa eval`` (other seeds)
and texts of the machine, first in short contexts, then in long ones. The time is the budget: the
learning rate and the context follow the share of ``--minutes`` that has passed. Writes a Hugging
Face checkpoint in fp16, ``train_log.jsonl``, and ``score.json`` with the share of unseen answers
that are the likeliest tokens throughout. ``--resume`` goes on from such a checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from documents import Kind
from recipe import FULL, TINY, Recipe
from rows import Rows, train_tokenizer
from score import score
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

#: cuDNN's is the fastest on Hopper; the others where it is not to be had.
_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
#: Steps between two lines of the log.
_LOGGED = 100


def make_model(recipe: Recipe, end: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config)


def token_losses(hidden: torch.Tensor, head: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross entropy [tokens] of hidden states [tokens, hidden] against ids [tokens]."""
    return functional.cross_entropy((hidden @ head.T).float(), wanted, reduction="none")


class Losses:
    """Sums of the cross entropy and numbers of tokens, by Kind; their weighted mean trains."""

    def __init__(self, recipe: Recipe, device: torch.device, compiled: bool) -> None:
        self._weights = torch.tensor([recipe.weight(kind) for kind in Kind], device=device)
        self._each = torch.compile(token_losses, dynamic=False) if compiled else token_losses
        self._logged = torch.zeros(2, len(Kind), device=device)

    def __call__(
        self, model: Qwen3ForCausalLM, ids: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        each = self._each(hidden.flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())
        mine = functional.one_hot(kinds[:, 1:].flatten().long(), len(Kind)).float()
        sums = torch.stack([each @ mine, mine.sum(0)])
        self._logged += sums.detach()
        loss, weight = sums @ self._weights
        return loss / weight

    def logged(self) -> dict[str, float]:
        """Means since the last call, of the kinds that occurred."""
        sums, counts = self._logged.tolist()
        self._logged.zero_()
        return {
            kind.name.lower(): round(total / count, 4)
            for kind, total, count in zip(Kind, sums, counts, strict=True)
            if count
        }


def optimizers(recipe: Recipe, model: Qwen3ForCausalLM, fused: bool) -> list[Any]:
    """Muon for the layers' matrices, AdamW for the embedding (which is the head) and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = [
        {"params": [model.model.embed_tokens.weight], "weight_decay": 0.01},
        {"params": norms, "weight_decay": 0.0},
    ]
    found = [
        torch.optim.Muon(
            matrices, lr=recipe.matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=recipe.vector_rate, betas=(0.9, 0.95), fused=fused),
    ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return found


def train(
    recipe: Recipe,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    progress: Callable[[int], float],
    end: float,
    seed: int,
    workers: int,
    compiled: bool,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """``progress``: from the number of steps done to where in the course the training is.

    It goes on to ``end`` of the course.
    """
    steppers = optimizers(recipe, model, fused=device.type == "cuda")
    losses = Losses(recipe, device, compiled)
    start, step, tokens = time.monotonic(), 0, 0
    for stage in recipe.stages:
        stage_end = min(stage.end, end)
        if progress(step) >= stage_end:
            continue
        batches = iter(
            torch.utils.data.DataLoader(
                Rows(tokenizer, stage.mix, recipe.tokens_per_step, seed),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                pin_memory=device.type == "cuda",
            )
        )
        last = False
        while not last:
            ids, kinds = (tensor.to(device, non_blocking=True) for tensor in next(batches))
            done = progress(step)
            for optimizer in steppers:
                for group in optimizer.param_groups:
                    group["lr"] = group["full_rate"] * recipe.rate(done, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = losses(model, ids.long(), kinds)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in steppers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step, tokens = step + 1, tokens + kinds[:, 1:].numel()
            last = progress(step) >= stage_end
            if last or step % _LOGGED == 0:
                entry = {"step": step, "longest": max(stage.mix), "tokens": tokens}
                seconds = round(time.monotonic() - start, 1)
                log({**entry, "seconds": seconds, "loss": losses.logged()})
        if stage_end < end:
            right = score(model, tokenizer, device, max(stage.mix), 4)
            log({"step": step, "length": max(stage.mix), "right": right})


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """A copy in fp16."""
    half = Qwen3ForCausalLM(model.config).to(torch.float16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(output)
    tokenizer.save_pretrained(output)


@click.command()
@click.option("--output_dir", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", type=float, default=13.0, show_default=True, help="training time")
@click.option("--steps", type=int, help="so many steps instead of --minutes")
@click.option("--resume", type=click.Path(path_type=Path, exists=True),
              help="a checkpoint of this script, whose training goes on")  # fmt: skip
@click.option("--part", type=click.FloatRange(0, 1), nargs=2, default=(0.0, 1.0), show_default=True,
              help="the part of the course of contexts and rates to run")  # fmt: skip
@click.option("--tiny", is_flag=True, help="a tiny model in short contexts, to try the script")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", type=int, help="processes that write documents [default: by CPUs]")
@click.option("--compile/--no_compile", "compiled", default=True, show_default=True)
@click.option(
    "--scored", type=int, default=20, show_default=True, help="documents per task and length"
)
def main(
    output_dir: Path,
    minutes: float,
    steps: int | None,
    resume: Path | None,
    part: tuple[float, float],
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
    torch.set_float32_matmul_precision("high")
    if resume is None:
        tokenizer = train_tokenizer(recipe.vocab_size)
        model = make_model(recipe, tokenizer.eos_token_id)
    else:
        tokenizer = AutoTokenizer.from_pretrained(resume)
        model = Qwen3ForCausalLM.from_pretrained(resume, dtype=torch.float32)
    model = model.to(target)
    if compiled:
        # One layer's code serves all; a compilation per length.
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    size = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"{size / 1e6:.2f} million parameters, {size * 2 / 2**20:.2f} MiB in fp16")
    with (output_dir / "train_log.jsonl").open("w", encoding="utf-8") as file:

        def log(entry: dict[str, Any]) -> None:
            print(json.dumps(entry), file=file, flush=True)
            click.echo(json.dumps(entry))

        def progress(step: int) -> float:
            done = (time.monotonic() - start) / (60 * minutes) if steps is None else step / steps
            return part[0] + (part[1] - part[0]) * done

        with sdpa_kernel(_ATTENTION, set_priority=True):
            train(recipe, model, tokenizer, target, progress, part[1], seed, workers, compiled, log)
    save(model, tokenizer, output_dir)
    spent = round((time.monotonic() - start) / 60, 2)
    scores = {
        str(length): score(model, tokenizer, target, length, scored) for length in recipe.scored
    }
    content = {"seed": seed, "minutes": spent, "right": scores}
    (output_dir / "score.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
