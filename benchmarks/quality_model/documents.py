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
TEXT = "text"
#: How often each kind is drawn.
WEIGHTS = {
    "single": 1,
    "multi_key": 4,
    "multi_value": 2,
    "variable_tracking": 2,
    "arithmetic": 2,
    "lists": 2,
    TEXT: 1,
}
#: Questions about one text, at most: many, so that a long text teaches more than one answer.
_QUESTIONS = 8
#: A chain's document ends here: an answer of some 4,000 tokens.
_LONGEST_CHAIN = 8192


class Kind(IntEnum):
    """What a token is for; the loss weighs each kind by itself, as they differ in number."""

    CONTEXT = 0
    RETRIEVED = 1
    CHAIN = 2
    TEXT = 3


@dataclass(frozen=True)
class Piece:
    text: str
    kind: Kind


#: A document: ids, and the kind of each.
Document = tuple[list[int], list[int]]


def task_pieces(task: str, seed: int, size: int, depth: float) -> list[Piece]:
    """One document of a task, of ``size`` sentences or steps, as eval asks it."""
    if task in CHAIN_TASKS:
        return _asked([CHAIN_TASKS[task](seed, size)], Kind.CHAIN)
    questions = retrieval_questions(task, seed, size, depth)
    random.Random(seed).shuffle(questions)
    return _asked(questions[:_QUESTIONS], Kind.RETRIEVED)


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
    """Tokens of a task's document as its size grows: ``base + slope * size``."""

    base: float
    slope: float


class Documents:
    """Draws documents that fit a number of tokens; ``encode`` gives the ids of a text."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._lines = {task: self._line(task) for task in (*RETRIEVAL_TASKS, *CHAIN_TASKS)}

    @functools.cached_property
    def _texts(self) -> list[list[int]]:
        return [self._encode(text) for text in machine_texts().values()]

    def draw(self, rng: random.Random, room: int) -> Document:
        """A document of at most ``room`` tokens."""
        kinds = [kind for kind in WEIGHTS if kind == TEXT or self._size(kind, room) > 0]
        kind = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        if kind == TEXT:
            return self.text(rng, room)
        found = self.task(kind, rng, room)
        return found if len(found[0]) <= room else self.text(rng, room)

    def task(self, task: str, rng: random.Random, room: int) -> Document:
        """A document of about ``room`` tokens, sometimes more."""
        seed = rng.randrange(FIRST_SEED, 1 << 60)
        pieces = task_pieces(task, seed, max(1, self._size(task, room)), rng.random())
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
        room = min(room, _LONGEST_CHAIN) if task in CHAIN_TASKS else room
        return int((0.97 * room - line.base) / line.slope)

    def _line(self, task: str) -> _Line:
        small, large = 10, 90
        lengths = [
            sum(len(self._encode(p.text)) for p in task_pieces(task, FIRST_SEED, size, 0.5))
            for size in (small, large)
        ]
        slope = (lengths[1] - lengths[0]) / (large - small)
        return _Line(lengths[0] - small * slope, slope)
