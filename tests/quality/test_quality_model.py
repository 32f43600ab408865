"""The script that trains the small model: its documents, and a tiny run from end to end."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
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
SCRIPT = ROOT / "benchmarks" / "quality_model" / "train.py"


@pytest.fixture(scope="module")
def modules() -> Any:
    """documents, rows, train: as the script imports them."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield [importlib.import_module(name) for name in ("documents", "rows", "train")]
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def tokenizer(modules: Any) -> Any:
    return modules[1].train_tokenizer(384, documents=20)


def test_the_model_fits_its_size(modules: Any) -> None:
    train = modules[2]
    with torch.device("meta"):
        model = train.make_model(train.FULL, end=0)
    assert 10 < sum(p.numel() for p in model.parameters()) * 2 / 2**20 < 13.8
    assert model.config.max_position_embeddings == 16384
    assert (model.config.head_dim, model.config.num_key_value_heads) == (64, 2)


@pytest.mark.parametrize("task", [*RETRIEVAL_TASKS, *CHAIN_TASKS])
def test_what_is_learnt_is_what_eval_asks(
    modules: Any, tokenizer: Any, tmp_path: Path, task: str
) -> None:
    documents, _, _ = modules
    encode = tokenizer.backend_tokenizer.encode
    maker = documents.Documents(lambda text: encode(text).ids)
    ids, kinds = maker.task(task, random.Random(1), 4000)
    assert 3000 < len(ids) <= 4100
    wanted = documents.Kind.CHAIN if task in CHAIN_TASKS else documents.Kind.RETRIEVED
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


def test_rows_are_full_and_of_all_kinds(modules: Any, tokenizer: Any) -> None:
    documents, rows, _ = modules
    batches = iter(rows.Rows(tokenizer, 2048, 8, seed=0))
    ids, kinds = next(batches)
    assert ids.shape == kinds.shape == (8, 2049)
    assert set(kinds.flatten().tolist()) == {int(kind) for kind in documents.Kind}
    again, _ = next(iter(rows.Rows(tokenizer, 2048, 8, seed=0)))
    other, _ = next(iter(rows.Rows(tokenizer, 2048, 8, seed=1)))
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)


def test_losses_are_of_their_kind(modules: Any, tokenizer: Any) -> None:
    """Against cross entropy computed one token at a time."""
    documents, _, train = modules
    model = train.make_model(train.TINY, tokenizer.eos_token_id).eval()
    ids = torch.randint(0, 384, (2, 9), generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([[0, 0, 1, 1, 0, 0, 3, 3, 3], [0, 0, 0, 0, 0, 0, 0, 0, 3]])
    with torch.inference_mode():
        found = train.losses(model, ids, kinds)
        logp = model(input_ids=ids).logits.log_softmax(-1)
    for kind in documents.Kind:
        each = [
            -float(logp[b, t - 1, ids[b, t]])
            for b in range(2)
            for t in range(1, 9)
            if kinds[b, t] == kind
        ]
        assert float(found[kind]) == pytest.approx(sum(each) / max(1, len(each)), abs=1e-4)


@pytest.mark.slow
def test_a_tiny_run_gives_a_checkpoint_that_builds(tmp_path: Path) -> None:
    output = tmp_path / "model"
    command = [sys.executable, str(SCRIPT), "--output_dir", str(output), "--tiny", "--steps", "12"]
    command += ["--device", "cpu", "--workers", "1", "--no_compile", "--scored", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log][-1] == 12
    assert {entry["length"] for entry in log} == {512, 1024}
    assert log[-1]["loss"]["context"] < log[0]["loss"]["context"]
    assert set(json.loads((output / "score.json").read_text())["right"]) == {"256", "1024"}
    weights = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    engine = build_torch_engine(output, tmp_path / "engine")
    with LLM(engine, device="cpu") as llm:
        result = llm.generate("Step 1: 57 + 8 =", SamplingParams(max_tokens=4, ignore_eos=True))
        assert len(result.outputs[0].token_ids) == 4
