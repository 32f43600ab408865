"""Training documents: the tasks of ``trt-resa eval`` with other seeds, and texts of the machine."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from trt_resa.runtime.quality.chains import CHAIN_TASKS
from trt_resa.runtime.quality.retrieval import RETRIEVAL_TASKS, retrieval_questions
from trt_resa.runtime.quality.samples import Sample
from trt_resa.runtime.quality.texts import machine_texts

#: Seeds from here on are for training; ``trt-resa eval`` counts up from 0.
FIRST_SEED = 1_000_000
TASKS = (*RETRIEVAL_TASKS, *CHAIN_TASKS)
TEXT = "text"
#: How often each kind is drawn.
WEIGHTS = {
    "single": 1.0,
    "multi_key": 4.0,
    "multi_value": 1.5,
    "variable_tracking": 1.5,
    "arithmetic": 1.5,
    "lists": 3.0,
    TEXT: 0.5,
}
#: Questions about one text, at most: many, so that a long text teaches more than one answer.
_QUESTIONS = 12
#: A chain's document ends here: an answer of some 4,000 tokens.
LONGEST_CHAIN = 8192


class Kind(IntEnum):
    """What a token is for: what a task gives, a text, or the answer of a task."""

    CONTEXT = 0
    TEXT = 1
    SINGLE = 2
    MULTI_KEY = 3
    MULTI_VALUE = 4
    VARIABLE_TRACKING = 5
    ARITHMETIC = 6
    LISTS = 7


@dataclass(frozen=True)
class Piece:
    text: str
    kind: Kind


#: A document: ids, and the kind of each.
Document = tuple[list[int], list[int]]


def task_pieces(task: str, seed: int, size: int, depth: float) -> list[Piece]:
    """One document of a task, of ``size`` sentences or steps, as eval asks it."""
    kind = Kind[task.upper()]
    if task in CHAIN_TASKS:
        return _asked([CHAIN_TASKS[task](seed, size)], kind)
    questions = retrieval_questions(task, seed, size, depth)
    random.Random(seed).shuffle(questions)
    return _asked(questions[:_QUESTIONS], kind)


def _asked(samples: Sequence[Sample], kind: Kind) -> list[Piece]:
    pieces = list[Piece]()
    for sample in samples:
        # Later questions are about the text that the first one brought.
        body = sample.body.rsplit("\n", 1)[1] if pieces else sample.body
        pieces += [
            Piece(f"{body}\n{sample.prefix}", Kind.CONTEXT),
            Piece(f"{sample.answer}\n", kind),
        ]
    return pieces


@dataclass(frozen=True)
class _Line:
    """About the tokens of a task's document as its size grows: ``base + slope * size``."""

    base: float
    slope: float


class Documents:
    """Draws documents that fit a number of tokens; ``encode`` gives the ids of a text."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._lines = {task: self._line(task) for task in TASKS}

    @functools.cached_property
    def _texts(self) -> list[list[int]]:
        return [self._encode(text) for text in machine_texts().values()]

    def draw(self, rng: random.Random, room: int) -> Document:
        """A document of at most ``room`` tokens, and nearly so many."""
        kinds = [kind for kind in WEIGHTS if kind == TEXT or self.fits(kind, room)]
        kind = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        return self.text(rng, room) if kind == TEXT else self.task(kind, rng, room)

    def fits(self, task: str, room: int) -> bool:
        """Whether a document of ``task`` can have ``room`` tokens."""
        return self._size(task, room) > 1

    def task(self, task: str, rng: random.Random, room: int) -> Document:
        """A document of at most ``room`` tokens, and nearly so many; a chain has 8,192 at most.

        Never cut off: an answer cut at a certain length would teach that answers end there.
        """
        room = min(room, LONGEST_CHAIN) if task in CHAIN_TASKS else room
        seed, depth = rng.randrange(FIRST_SEED, 1 << 60), rng.random()
        size = max(1, self._size(task, room))
        while len((found := self._encoded(task_pieces(task, seed, size, depth)))[0]) > room:
            if size == 1:
                raise ValueError(f"a document of task {task} does not fit {room} tokens")
            size = max(1, min(size - 1, int(size * room / len(found[0]))))
        return found

    def _encoded(self, pieces: Sequence[Piece]) -> Document:
        ids, kinds = list[int](), list[int]()
        for piece in pieces:
            more = self._encode(piece.text)
            ids += more
            kinds += [piece.kind] * len(more)
        return ids, kinds

    def text(self, rng: random.Random, room: int) -> Document:
        """A piece of a text."""
        text = rng.choice(self._texts)
        start = rng.randrange(max(1, len(text) - room))
        part = text[start : start + room]
        return part, [Kind.TEXT] * len(part)

    def _size(self, task: str, room: int) -> int:
        line = self._lines[task]
        return int((0.98 * room - line.base) / line.slope)

    def _line(self, task: str) -> _Line:
        small, large = 10, 300
        lengths = [
            sum(len(self._encode(p.text)) for p in task_pieces(task, FIRST_SEED, size, 0.5))
            for size in (small, large)
        ]
        slope = (lengths[1] - lengths[0]) / (large - small)
        return _Line(lengths[0] - small * slope, slope)
