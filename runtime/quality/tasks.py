"""The tasks by name, and samples of them that fit a model's tokenizer and a length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trt_resa.errors import ConfigError, RequestError
from trt_resa.runtime.quality.chains import CHAIN_TASKS
from trt_resa.runtime.quality.retrieval import RETRIEVAL_TASKS, retrieval
from trt_resa.runtime.quality.samples import Sample, fitting
from trt_resa.runtime.quality.words import filler
from trt_resa.runtime.tokenizer import TextTokenizer
from trt_resa.sampling_params import SamplingParams

TEXT, PROMPTS = "text", "prompts"
TASKS = (*RETRIEVAL_TASKS, *CHAIN_TASKS, TEXT)

#: Tokens of an answer beyond those of the right one: a model may write a list where the right
#: answer is a line.
_SLACK = 32
_MARK = "<<message>>"


def parse_tasks(text: str) -> tuple[str, ...]:
    named = [part.strip() for part in text.split(",") if part.strip()]
    for task in named:
        if task not in TASKS:
            raise ConfigError(f"task '{task}' is not one of {', '.join(TASKS)}")
    return tuple(task for task in TASKS if task in named)


@dataclass(frozen=True)
class Question:
    """A sample as the model gets it: token ids of the prompt, and when the answer ends."""

    sample: Sample
    prompt: list[int]
    params: SamplingParams


class PromptMaker:
    """Texts as prompts: plain, or with ``chat`` in the model's chat template."""

    def __init__(self, tokenizer: TextTokenizer | None, chat: bool) -> None:
        if tokenizer is None:
            raise RequestError("the tasks are texts, and the engine directory holds no tokenizer")
        self._tokenizer = tokenizer
        self._chat = tuple(tokenizer.chat(_MARK).split(_MARK)) if chat else None

    def prompt(self, body: str, prefix: str = "") -> str:
        """A plain prompt without a prefix is ``body`` as it is."""
        if self._chat is not None:
            head, tail = self._chat
            return f"{head}{body}{tail}{prefix}"
        return f"{body}\n{prefix}" if prefix else body

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def retrieval(self, task: str, seed: int, length: int, depth: float) -> Question:
        """Prompt and right answer together take at most ``length`` tokens, and nearly so many."""

        def make(sentences: int) -> Sample:
            return retrieval(task, seed, sentences, depth)

        def size(sample: Sample) -> int:
            return len(self._prompt_ids(sample)) + self._answer_length(sample)

        return self._question(fitting(make, size, length), ())

    def chain(self, task: str, seed: int, answer_tokens: int, filler_tokens: int) -> Question:
        """The right answer takes at most ``answer_tokens``, and nearly so many.

        So does the text that stands before the question with ``filler_tokens``; 0: none.
        """
        chain = fitting(partial(CHAIN_TASKS[task], seed), self._answer_length, answer_tokens)

        def behind(sentences: int) -> Sample:
            return replace(chain, body=f"{filler(seed, sentences)}\n\n{chain.body}")

        def added(sample: Sample) -> int:
            return len(self.ids(sample.body)) - len(self.ids(chain.body))

        sample = fitting(behind, added, filler_tokens) if filler_tokens else chain
        return self._question(sample, (f"\nStep {len(sample.expected) + 1}:",))

    def _question(self, sample: Sample, stop: tuple[str, ...]) -> Question:
        values: dict[str, Any] = {"max_tokens": self._answer_length(sample) + _SLACK, "stop": stop}
        return Question(sample, self._prompt_ids(sample), SamplingParams(**values))

    def _prompt_ids(self, sample: Sample) -> list[int]:
        return self.ids(self.prompt(sample.body, sample.prefix))

    def _answer_length(self, sample: Sample) -> int:
        return len(self.ids(sample.answer))
