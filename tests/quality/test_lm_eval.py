"""lm-evaluation-harness itself, on tasks in a local file: no data set is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="install trt-resa[lm-eval] to run lm-eval's tasks")

import lm_eval
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM

from trt_resa import LLM, SamplingParams
from trt_resa.runtime.quality.lm_eval_model import ResaLM
from trt_resa.runtime.tokenizer import TextTokenizer

QUESTIONS = [f"question {number}: {'the quick brown fox. ' * 9}" for number in range(4)]
NEW = 12
OPTIONS: dict[str, Any] = {"device": "cpu", "kv_cache_config": {"max_tokens": 8192}}


@pytest.fixture(scope="module")
def dense_answers(tiny_engine: Path) -> list[str]:
    params = SamplingParams(max_tokens=NEW)
    with LLM(tiny_engine, **OPTIONS) as llm:
        requests = llm.generate(QUESTIONS, params, rectify_mode="dense")
    return [request.outputs[0].text for request in requests]


@pytest.fixture(scope="module")
def reference(tiny_engine: Path) -> Any:
    checkpoint = tiny_engine.parent / "checkpoint"
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def evaluate(engine: Path, task: dict[str, Any], rows: list[dict[str, Any]], mode: str) -> Any:
    """The task's results for an engine in ``mode``; ``rows`` are written beside it."""
    file = engine.parent / f"{task['task']}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    local = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
    }
    model = ResaLM(engine, sparse_attention_config={"rectify_mode": mode}, **OPTIONS)
    try:
        found = lm_eval.simple_evaluate(model=model, tasks=[{**local, **task}], bootstrap_iters=0)
    finally:
        model.shutdown()
    assert found is not None
    return found["results"][task["task"]]


def test_generated_answers(tiny_engine: Path, dense_answers: list[str]) -> None:
    """Half of the answers asked for are the dense model's."""
    rows = [
        {"question": question, "answer": answer if number % 2 else "something else"}
        for number, (question, answer) in enumerate(zip(QUESTIONS, dense_answers, strict=True))
    ]
    task = {
        "task": "local_answers",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\0"], "max_gen_toks": NEW, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for mode, share in (("dense", 0.5), ("verify", 0.5), ("none", 0.0)):
        results = evaluate(tiny_engine, task, rows, mode)
        assert results["exact_match,none"] == share, mode


def likelihood(reference: Any, context: list[int], more: list[int]) -> float:
    """Log likelihood of ``more`` after ``context`` by transformers."""
    with torch.inference_mode():
        logits = reference(torch.tensor([[*context, *more]])).logits
    logp = logits[0, len(context) - 1 : -1].log_softmax(-1)
    return float(logp.gather(1, torch.tensor(more)[:, None]).sum())


def test_choices_by_likelihood(tiny_engine: Path, reference: Any) -> None:
    """The right choice is the one that transformers finds likeliest; the last row's is wrong."""
    tokenizer = TextTokenizer.load(tiny_engine)
    assert tokenizer is not None
    choices = ["zzzzzzzz", "A green one", "QQQQ QQQQ", "the end of it"]
    rows = []
    for question in QUESTIONS:
        found = [
            likelihood(reference, tokenizer.encode(question), tokenizer.encode(choice))
            for choice in choices
        ]
        rows.append({"question": question, "choices": choices, "right": found.index(max(found))})
    rows[-1]["right"] = (rows[-1]["right"] + 1) % len(choices)
    task = {
        "task": "local_choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    }
    for mode in ("dense", "verify"):
        assert evaluate(tiny_engine, task, rows, mode)["acc,none"] == 0.75, mode


def test_rolling_likelihood_is_that_of_the_tokens(tiny_engine: Path, reference: Any) -> None:
    """Perplexity of a text, against transformers' loss on the same tokens."""
    text = "A text of some length. " * 6
    model = ResaLM(tiny_engine, sparse_attention_config={"rectify_mode": "dense"}, **OPTIONS)
    try:
        ids = [model.eot_token_id, *model.tok_encode(text)]
        request = Instance("loglikelihood_rolling", {}, (text,), 0)
        found = model.loglikelihood_rolling([request])[0]
    finally:
        model.shutdown()
    assert found == pytest.approx(likelihood(reference, ids[:1], ids[1:]), rel=1e-3)
