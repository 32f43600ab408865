"""The script that trains the small model: its documents, and a tiny run from end to end."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import build_torch_engine
from trt_resa import LLM, SamplingParams
from trt_resa.runtime.quality.chains import CHAIN_TASKS
from trt_resa.runtime.quality.retrieval import RETRIEVAL_TASKS, retrieval_questions
from trt_resa.runtime.quality.tasks import PromptMaker
from trt_resa.runtime.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]
_MODULES = ("documents", "rows", "train", "recipe", "score")
SCRIPT = ROOT / "benchmarks" / "quality_model" / "train.py"


@pytest.fixture(scope="module")
def modules() -> Any:
    """documents, rows, train, recipe, score: as the script imports them."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield [importlib.import_module(name) for name in _MODULES]
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def tokenizer(modules: Any) -> Any:
    return modules[1].train_tokenizer(384, documents=20)


def test_the_model_fits_its_size(modules: Any) -> None:
    _, _, train, recipe, _ = modules
    with torch.device("meta"):
        model = train.make_model(recipe.FULL, end=0)
    assert 10 < sum(p.numel() for p in model.parameters()) * 2 / 2**20 < 13.8
    assert model.config.max_position_embeddings == 16384
    assert (model.config.head_dim, model.config.num_key_value_heads) == (64, 2)


@pytest.mark.parametrize("task", [*RETRIEVAL_TASKS, *CHAIN_TASKS])
def test_what_is_learnt_is_what_eval_asks(
    modules: Any, tokenizer: Any, tmp_path: Path, task: str
) -> None:
    documents = modules[0]
    encode = tokenizer.backend_tokenizer.encode
    maker = documents.Documents(lambda text: encode(text).ids)
    ids, kinds = maker.task(task, random.Random(1), 4000)
    assert 3600 < len(ids) <= 4000
    wanted = documents.Kind[task.upper()]
    assert set(kinds) == {documents.Kind.CONTEXT, wanted}
    pieces = documents.task_pieces(task, documents.FIRST_SEED, 20, 0.5)
    # The same seed by eval's own means: its prompt is the document's beginning, its answer next.
    tokenizer.save_pretrained(tmp_path)
    prompts = PromptMaker(TextTokenizer.load(tmp_path), chat=False)
    if task in CHAIN_TASKS:
        samples = [CHAIN_TASKS[task](documents.FIRST_SEED, 20)]
    else:
        samples = retrieval_questions(task, documents.FIRST_SEED, 20, 0.5)
    answers = {f"{sample.answer}\n" for sample in samples}
    assert {piece.text for piece in pieces if piece.kind == wanted} <= answers
    first = next(s for s in samples if f"{s.answer}\n" == pieces[1].text)
    assert prompts.ids(prompts.prompt(first.body, first.prefix)) == encode(pieces[0].text).ids
    joined = encode(pieces[0].text + pieces[1].text).ids
    assert joined == encode(pieces[0].text).ids + encode(pieces[1].text).ids


@pytest.mark.parametrize("task", CHAIN_TASKS)
@pytest.mark.parametrize("room", [450, 1500, 8192])
def test_a_chain_is_never_cut_off(modules: Any, tokenizer: Any, task: str, room: int) -> None:
    encode = tokenizer.backend_tokenizer.encode
    maker = modules[0].Documents(lambda text: encode(text).ids)
    for seed in range(4):
        ids, _ = maker.task(task, random.Random(seed), room)
        body, answer = tokenizer.decode(ids).split("Step 1:", 2)[1:]
        steps = body.rsplit("Step ", 1)[-1].split(":")[0] if "Step" in body else "1"
        assert answer.endswith("\n")
        assert answer.splitlines()[-1].startswith(f"Step {steps}:" if steps != "1" else "")
        assert 0.8 * room < len(ids) <= room


def test_what_does_not_fit_is_refused(modules: Any, tokenizer: Any) -> None:
    encode = tokenizer.backend_tokenizer.encode
    maker = modules[0].Documents(lambda text: encode(text).ids)
    with pytest.raises(ValueError, match="multi_key does not fit 300 tokens"):
        maker.task("multi_key", random.Random(0), 300)


def test_rows_are_full_and_of_all_kinds(modules: Any, tokenizer: Any) -> None:
    documents, rows = modules[:2]
    mix = {1024: 0.5, 4096: 0.5}
    batches = iter(rows.Rows(tokenizer, mix, 16384, seed=0))
    found = [next(batches) for _ in range(6)]
    assert {tuple(ids.shape) for ids, _ in found} == {(16, 1025), (4, 4097)}
    assert all(ids.shape == kinds.shape for ids, kinds in found)
    assert {k for _, kinds in found for k in kinds.flatten().tolist()} == set(documents.Kind)
    again, _ = next(iter(rows.Rows(tokenizer, mix, 16384, seed=0)))
    other, _ = next(iter(rows.Rows(tokenizer, mix, 16384, seed=1)))
    assert torch.equal(found[0][0], again)
    assert not torch.equal(again[:, :100], other[: len(again), :100])


def test_rates_rise_stay_and_fall(modules: Any) -> None:
    recipe = modules[3].FULL
    assert recipe.rate(0.0, 0) == 1 / recipe.warmup
    assert recipe.rate(recipe.decay_from, 10_000) == 1
    assert recipe.rate(0.75, 10_000) == pytest.approx(0.25 / (1 - recipe.decay_from))
    assert recipe.rate(1.0, 10_000) == 0


def test_the_loss_weighs_tokens_by_their_kind(modules: Any, tokenizer: Any) -> None:
    """Against cross entropy computed one token at a time."""
    documents, _, train, recipe, _ = modules
    model = train.make_model(recipe.TINY, tokenizer.eos_token_id).eval()
    ids = torch.randint(0, 384, (2, 9), generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([[0, 0, 3, 3, 0, 0, 1, 1, 1], [0, 0, 0, 0, 6, 6, 0, 0, 1]])
    losses = train.Losses(recipe.TINY, torch.device("cpu"), compiled=False)
    with torch.inference_mode():
        found = losses(model, ids, kinds)
        logp = model(input_ids=ids).logits.log_softmax(-1)
    each: dict[int, list[float]] = {}
    for b in range(2):
        for t in range(1, 9):
            each.setdefault(int(kinds[b, t]), []).append(-float(logp[b, t - 1, ids[b, t]]))
    weights = {kind: recipe.TINY.weight(documents.Kind(kind)) for kind in each}
    total = sum(weights[kind] * sum(values) for kind, values in each.items())
    count = sum(weights[kind] * len(values) for kind, values in each.items())
    assert float(found) == pytest.approx(total / count, rel=1e-5)
    logged = losses.logged()
    assert set(logged) == {"context", "text", "multi_key", "arithmetic"}
    for kind, values in each.items():
        name = documents.Kind(kind).name.lower()
        assert logged[name] == pytest.approx(sum(values) / len(values), abs=1e-4)
    assert losses.logged() == {}


def test_the_score_counts_whole_answers(modules: Any, tokenizer: Any) -> None:
    """A model that is right everywhere but in what one token of one answer should be."""
    documents, _, _, _, scoring = modules
    encode = tokenizer.backend_tokenizer.encode
    maker = documents.Documents(lambda text: encode(text).ids)
    ids, kinds = maker.task("multi_key", random.Random("score multi_key"), 4096)
    spoiled = kinds.index(documents.Kind.MULTI_KEY) + 2

    class Knowing:
        def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            row = input_ids[0].roll(-1)
            if input_ids[0].tolist() == ids:
                row[spoiled - 1] += 1
            logits = torch.nn.functional.one_hot(row, 400)[None].float()
            return SimpleNamespace(logits=logits)

        model = SimpleNamespace(layers=())

    right = scoring.score(Knowing(), tokenizer, torch.device("cpu"), 4096, 1)
    answers = sum(a != 0 and b == 0 for a, b in pairwise([*kinds, 0]))
    assert right == {task: 1.0 for task in documents.TASKS} | {
        "multi_key": round(1 - 1 / answers, 4)
    }


@pytest.mark.slow
def test_a_tiny_run_gives_a_checkpoint_that_builds(tmp_path: Path) -> None:
    output = tmp_path / "model"
    command = [sys.executable, str(SCRIPT), "--output_dir", str(output), "--tiny", "--steps", "12"]
    command += ["--device", "cpu", "--workers", "1", "--no_compile", "--scored", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log][-1] == 12
    assert {entry["longest"] for entry in log if "loss" in entry} == {512, 1024}
    losses = [entry["loss"]["context"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    assert {"768", "1024"} < set(json.loads((output / "score.json").read_text())["right"])
    weights = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    engine = build_torch_engine(output, tmp_path / "engine")
    with LLM(engine, device="cpu") as llm:
        result = llm.generate("Step 1: 57 + 8 =", SamplingParams(max_tokens=4, ignore_eos=True))
        assert len(result.outputs[0].token_ids) == 4
