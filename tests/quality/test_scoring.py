"""Scores against answers written by hand."""

from __future__ import annotations

import pytest

from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.quality.answers import task_answers
from trt_resa.runtime.quality.chains import arithmetic
from trt_resa.runtime.quality.retrieval import retrieval
from trt_resa.runtime.quality.scoring import found_share, same_tokens, score_chain
from trt_resa.runtime.quality.tasks import Question
from trt_resa.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("expected", "text", "share"),
    [
        (("1234567",), " 1234567.", 1.0),
        (("1234567",), " 12345678.", 0.0),
        (("1234567",), " 123-4567", 0.0),
        (("12", "34", "56", "78"), "12, 34 and 78", 0.75),
        (("ABC", "DEF"), "ABCDEF", 0.0),
        (("ABC", "DEF"), "DEF,ABC", 1.0),
        (("a.c",), "abc", 0.0),
    ],
)
def test_found_share(expected: tuple[str, ...], text: str, share: float) -> None:
    assert found_share(expected, text) == share


LINES = ("Step 1: 57 + 8 = 65", "Step 2: 65 - 9 = 56", "Step 3: 56 + 1 = 57")


@pytest.mark.parametrize(
    ("text", "first_error", "right_share"),
    [
        ("\n".join(LINES), None, 1.0),
        ("\n\n ".join(LINES) + "\nand so on", None, 1.0),
        ("Step 1: 57 + 8 = 65\nStep 2: 65 - 9 = 57\nStep 3: 57 + 1 = 58", 2, 1 / 3),
        ("Step 1: 57 + 8 = 65\nStep 2: 65 - 9 = 56", 3, 2 / 3),
        ("Step 1: 57 + 8 = 65\nStep 3: 56 + 1 = 57", 2, 1 / 3),
        ("Step 1: 57 + 8 = 65 and 3", 1, 0.0),
        ("", 1, 0.0),
    ],
)
def test_score_chain(text: str, first_error: int | None, right_share: float) -> None:
    score = score_chain(LINES, text)
    assert score.first_error == first_error
    assert score.exact == (first_error is None)
    assert score.right_share == pytest.approx(right_share)


def test_same_tokens() -> None:
    assert same_tokens([1, 2, 3], [1, 2, 3]) == 3
    assert same_tokens([1, 2, 3], [1, 2]) == 2
    assert same_tokens([1, 9, 3], [1, 2, 3]) == 1
    assert same_tokens([], [1]) == 0


def output(text: str, tokens: list[int]) -> CompletionOutput:
    return CompletionOutput(index=0, text=text, token_ids=tokens)


def test_answers_of_a_task_are_averaged() -> None:
    samples = [retrieval("multi_value", seed, 5, depth) for seed, depth in ((0, 0.0), (1, 1.0))]
    questions = [Question(sample, [0], SamplingParams()) for sample in samples]
    half = " and ".join(samples[1].expected[:2])
    outputs = [output(samples[0].answer, [1, 2, 3, 4]), output(half, [1, 2])]
    dense = [output("", [1, 2, 3, 4]), output("", [1, 3, 3, 4])]
    answers = task_answers("multi_value", questions, outputs, dense)
    assert answers.score == 0.75
    assert answers.by_depth == {0.0: 1.0, 1.0: 0.5}
    assert answers.same_as_dense == (1 + 0.25) / 2


def test_a_chain_is_scored_with_the_words_that_were_given() -> None:
    samples = [arithmetic(seed, 4) for seed in range(2)]
    questions = [Question(sample, [0], SamplingParams()) for sample in samples]
    wrong = samples[1].answer.rsplit("=", 1)[0] + "= 999"
    outputs = [output(samples[0].answer, [1]), output(wrong, [1])]
    answers = task_answers("arithmetic", questions, outputs, outputs)
    assert answers.score == 0.5
    assert list(answers.first_errors) == [None, 4]
    assert answers.steps_right == (1 + 0.75) / 2
