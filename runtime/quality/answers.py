"""Generated answers, scored and compared with those of dense."""

from __future__ import annotations

from collections.abc import Sequence

from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.quality.chains import CHAIN_TASKS
from trt_resa.runtime.quality.prompt_file import UserPrompt
from trt_resa.runtime.quality.results import Answers, mean
from trt_resa.runtime.quality.scoring import found_share, same_tokens, score_chain
from trt_resa.runtime.quality.tasks import Question


def _same(outputs: Sequence[CompletionOutput], dense: Sequence[CompletionOutput]) -> float:
    pairs = zip(outputs, dense, strict=True)
    return mean(
        [
            same_tokens(o.token_ids, d.token_ids) / max(len(o.token_ids), len(d.token_ids))
            for o, d in pairs
        ]
    )


def task_answers(
    task: str,
    questions: Sequence[Question],
    outputs: Sequence[CompletionOutput],
    dense: Sequence[CompletionOutput],
) -> Answers:
    samples = [question.sample for question in questions]
    texts = [sample.prefix + o.text for sample, o in zip(samples, outputs, strict=True)]
    if task in CHAIN_TASKS:
        chains = [score_chain(s.expected, text) for s, text in zip(samples, texts, strict=True)]
        return Answers(
            score=mean([chain.exact for chain in chains]),
            same_as_dense=_same(outputs, dense),
            steps_right=mean([chain.right_share for chain in chains]),
            first_errors=[chain.first_error for chain in chains],
        )
    scores = [found_share(s.expected, o.text) for s, o in zip(samples, outputs, strict=True)]
    by_depth: dict[float, list[float]] = {}
    for sample, score in zip(samples, scores, strict=True):
        assert sample.depth is not None
        by_depth.setdefault(sample.depth, []).append(score)
    return Answers(
        score=mean(scores),
        same_as_dense=_same(outputs, dense),
        by_depth={depth: mean(each) for depth, each in sorted(by_depth.items())},
    )


def user_answers(
    prompts: Sequence[UserPrompt],
    outputs: Sequence[CompletionOutput],
    dense: Sequence[CompletionOutput],
) -> Answers:
    scores = [
        found_share(prompt.answers, output.text)
        for prompt, output in zip(prompts, outputs, strict=True)
        if prompt.answers
    ]
    return Answers(mean(scores) if scores else None, _same(outputs, dense))
