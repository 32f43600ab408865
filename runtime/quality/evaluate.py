"""Runs tasks with several settings side by side, on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trt_resa.errors import ConfigError
from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.quality.answers import task_answers, user_answers
from trt_resa.runtime.quality.chains import CHAIN_TASKS
from trt_resa.runtime.quality.drift import DriftMeter, TokenDrift
from trt_resa.runtime.quality.forcing import ForcedText, ForcingLLM
from trt_resa.runtime.quality.prompt_file import UserPrompt
from trt_resa.runtime.quality.results import Cost, Drift, Result, step_seconds
from trt_resa.runtime.quality.settings import Variant
from trt_resa.runtime.quality.tasks import PROMPTS, TEXT, PromptMaker, Question
from trt_resa.sampling_params import SamplingParams

#: Told what is about to run, before every run.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to run. ``lengths``: tokens of a prompt. ``depths``: places of a needle, in turn.

    ``answer_tokens``: of a chain, ``filler_tokens``: of a text before its question.
    ``forced_tokens``: of a text, after ``length`` tokens of it, and generated for each of
    ``prompts``.
    """

    tasks: Sequence[str]
    lengths: Sequence[int]
    samples: int
    depths: int
    answer_tokens: Sequence[int]
    filler_tokens: int
    forced_tokens: int
    texts: Mapping[str, str]
    prompts: Sequence[UserPrompt]
    seed: int
    chat: bool

    @property
    def shortest(self) -> int:
        """About the tokens of the shortest sequence of ``tasks``; 0 without tasks."""
        chains = CHAIN_TASKS.keys() & set(self.tasks)
        found = [self.filler_tokens + answer for answer in self.answer_tokens if chains]
        found += [length for length in self.lengths if set(self.tasks) - chains]
        return min(found, default=0)


class Evaluation:
    """``variants`` begin with dense, which the others are compared with.

    Raises ConfigError or RequestError for what the engine cannot run.
    """

    def __init__(
        self, llm: ForcingLLM, variants: Sequence[Variant], plan: Plan, progress: Progress
    ) -> None:
        assert variants[0].sparse.rectify_mode == "dense"
        self._llm, self._variants, self._plan, self._progress = llm, variants, plan, progress
        for variant in variants:
            llm.request_settings(variant.sparse)
        # All of it before anything runs, so that what does not fit is said at once.
        self._maker = PromptMaker(llm.tokenizer, plan.chat)
        self._questions = [
            (task, length, self._made(task, length))
            for task in plan.tasks
            if task != TEXT
            for length in (plan.answer_tokens if task in CHAIN_TASKS else plan.lengths)
        ]
        self._texts = [
            (f"{TEXT} {name}", length, self._excerpts(name, text, length))
            for length in (plan.lengths if TEXT in plan.tasks else ())
            for name, text in plan.texts.items()
        ]
        self._prompts = [self._maker.ids(self._maker.prompt(p.text)) for p in plan.prompts]
        for prompt in self._prompts:
            self._check("--prompts", len(prompt), plan.forced_tokens)

    def run(self) -> list[Result]:
        """Every task at every length with every variant."""
        results = list[Result]()
        for task, length, questions in self._questions:
            results += self._answers(task, length, questions)
        for task, length, texts in self._texts:
            results += self._drift(task, length, texts)
        if self._prompts:
            results += self._user_prompts()
        return results

    def _made(self, task: str, length: int) -> list[Question]:
        plan = self._plan
        numbers = range(plan.samples)
        if task in CHAIN_TASKS:
            questions = [
                self._maker.chain(task, plan.seed + n, length, plan.filler_tokens) for n in numbers
            ]
        else:
            step = 1 / max(1, plan.depths - 1)
            questions = [
                self._maker.retrieval(task, plan.seed + n, length, step * (n % plan.depths))
                for n in numbers
            ]
        for question in questions:
            self._check(task, len(question.prompt), question.params.max_tokens)
        return questions

    def _check(self, what: str, prompt: int, new: int) -> None:
        longest = self._llm.limits.max_seq_len
        if prompt + new > longest:
            raise ConfigError(
                f"{what}: a prompt of {prompt} tokens and {new} new ones exceed the engine's "
                f"max_seq_len {longest}; ask for less or build the engine for more"
            )

    def _answers(self, task: str, length: int, questions: Sequence[Question]) -> list[Result]:
        prompts = [question.prompt for question in questions]
        params = [question.params for question in questions]
        dense: list[CompletionOutput] = []
        results = []
        for variant, outputs, cost in self._generate(f"{task} {length}", prompts, params):
            dense = dense or outputs
            answers = task_answers(task, questions, outputs, dense)
            results.append(Result(task, length, len(questions), variant.name, answers, cost))
        return results

    def _generate(
        self, what: str, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> list[tuple[Variant, list[CompletionOutput], Cost]]:
        # One token first, so that all variants find the prompts' blocks in the cache, and their
        # times have no prompt in them while the cache can hold them all.
        self._progress(f"{what}: prompts")
        self._llm.generate(prompts, SamplingParams(max_tokens=1), rectify_mode="dense")
        found = []
        for variant in self._variants:
            self._progress(f"{what}: {variant.name}")
            before = step_seconds(self._llm.metrics())
            requests = self._llm.generate(prompts, params, sparse_attention_config=variant.sparse)
            seconds = step_seconds(self._llm.metrics()) - before
            outputs = [request.outputs[0] for request in requests]
            found.append((variant, outputs, Cost.of(outputs, seconds)))
        return found

    def _excerpts(self, name: str, text: str, length: int) -> list[ForcedText]:
        """``samples`` pieces of ``text``, evenly spread, each with its own forced part."""
        plan = self._plan
        ids = self._maker.ids(text)
        size = length + plan.forced_tokens
        self._check(f"{TEXT} {name}", length, plan.forced_tokens)
        if len(ids) < size:
            raise ConfigError(
                f"text {name} has {len(ids)} tokens and {size} are needed (a length of {length} "
                f"and {plan.forced_tokens} forced tokens); ask for less or give a longer --text"
            )
        last = len(ids) - size
        starts = [round(last * i / max(1, plan.samples - 1)) for i in range(plan.samples)]
        return [ForcedText(ids[start : start + size], length) for start in dict.fromkeys(starts)]

    def _drift(self, task: str, length: int, texts: Sequence[ForcedText]) -> list[Result]:
        return [
            Result(task, length, len(texts), variant.name, drift=drift)
            for variant, drift in self._forced(f"{task} {length}", texts)
        ]

    def _forced(self, what: str, texts: Sequence[ForcedText]) -> list[tuple[Variant, Drift]]:
        self._progress(f"{what}: dense reference")
        meter = DriftMeter(self._llm, texts)
        found = []
        for variant in self._variants:
            self._progress(f"{what}: {variant.name}, forced")
            drifts = meter.measure(variant.sparse)
            found.append((variant, Drift.of(TokenDrift.joined(drifts))))
        return found

    def _user_prompts(self) -> list[Result]:
        """Generated answers, and the drift along those of dense."""
        plan = self._plan
        prompts = self._prompts
        params = [SamplingParams(max_tokens=plan.forced_tokens)] * len(prompts)
        generated = self._generate(PROMPTS, prompts, params)
        dense = generated[0][1]
        texts_of_dense = [
            ForcedText([*prompt, *output.token_ids], len(prompt))
            for prompt, output in zip(prompts, dense, strict=True)
        ]
        results = []
        for (variant, outputs, cost), (_, drift) in zip(
            generated, self._forced(PROMPTS, texts_of_dense), strict=True
        ):
            answers = user_answers(plan.prompts, outputs, dense)
            longest = max(map(len, prompts))
            name = variant.name
            results.append(Result(PROMPTS, longest, len(prompts), name, answers, cost, drift))
        return results
