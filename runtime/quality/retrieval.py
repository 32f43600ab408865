"""Retrieval in the manner of RULER (arXiv 2404.06654): needles in sentences that say nothing.

``single``: one key with one number. ``multi_key``: one of 16 keys is asked for. ``multi_value``:
all four numbers of a key. ``variable_tracking``: all variables that a number was handed on to.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from trt_resa.runtime.quality.samples import Sample
from trt_resa.runtime.quality.words import keys, sentence

#: Variables that the number of ``variable_tracking`` reaches.
_HOPS = 5


@dataclass(frozen=True)
class Needles:
    """How many keys a haystack holds, and how many numbers each has."""

    keys: int
    values: int


NEEDLES = {
    "single": Needles(1, 1),
    "multi_key": Needles(16, 1),
    "multi_value": Needles(1, 4),
}
VARIABLE_TRACKING = "variable_tracking"
RETRIEVAL_TASKS = (*NEEDLES, VARIABLE_TRACKING)


def retrieval(task: str, seed: int, sentences: int, depth: float) -> Sample:
    """A sample of ``task``, its first needle at ``depth`` of the text."""
    return retrieval_questions(task, seed, sentences, depth)[0]


def retrieval_questions(task: str, seed: int, sentences: int, depth: float) -> list[Sample]:
    """The questions that can be asked about one text; the first is about the needle at ``depth``.

    The needles are those of ``seed``, however many sentences there are.
    """
    rng = random.Random(f"{task} {seed}")
    if task == VARIABLE_TRACKING:
        return [_variables(rng, sentences, depth)]
    return _needles(task, NEEDLES[task], rng, sentences, depth)


def _needles(
    task: str, sizes: Needles, rng: random.Random, sentences: int, depth: float
) -> list[Sample]:
    numbers = rng.sample(range(1_000_000, 10_000_000), sizes.keys * sizes.values)
    values = {
        key: tuple(map(str, numbers[i * sizes.values : (i + 1) * sizes.values]))
        for i, key in enumerate(keys(rng, sizes.keys))
    }
    lines = [
        f"One of the special magic numbers for {key} is: {value}."
        for key, each in values.items()
        for value in each
    ]
    # The values of a key are asked for in the order of the text.
    places = [depth, *(rng.random() for _ in lines[1:])]
    if sizes.values > 1:
        places = sorted(places)
    text = _hidden(lines, places, rng, sentences)
    kind, verb = ("are all the", "numbers") if sizes.values > 1 else ("is the", "number")
    is_or_are = "are" if sizes.values > 1 else "is"
    return [
        Sample(
            task=task,
            body="Some special magic numbers are hidden within the following text. Memorize them: "
            f"you will be asked about them afterwards.\n{text}\nWhat {kind} special magic {verb} "
            f"for {key} mentioned in the provided text?",
            prefix=f"The special magic {verb} for {key} mentioned in the provided text {is_or_are}",
            answer=f" {', '.join(each)}.",
            expected=each,
            depth=depth,
        )
        for key, each in values.items()
    ]


def _variables(rng: random.Random, sentences: int, depth: float) -> Sample:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = rng.sample([a + b + c for a in letters for b in letters for c in letters], 2 * _HOPS)
    number, other = rng.sample(range(10_000, 100_000), 2)
    chains = (names[:_HOPS], names[_HOPS:])
    lines, places = [], []
    for chain, value, first in zip(chains, (number, other), (depth, rng.random()), strict=True):
        sources = [str(value), *(f"VAR {name}" for name in chain[:-1])]
        lines += [f"VAR {name} = {source}." for name, source in zip(chain, sources, strict=True)]
        # The chain begins at its depth; each further variable comes somewhere behind the last.
        places += [first, *sorted(rng.uniform(first, 1) for _ in chain[1:])]
    text = _hidden(lines, places, rng, sentences)
    return Sample(
        task=VARIABLE_TRACKING,
        body="Memorize and track the chains of variable assignment hidden in the following text."
        f"\n{text}\nFind all variables that are assigned the value {number} in the text above, "
        "directly or through other variables.",
        prefix=f"The {_HOPS} variables that are assigned the value {number} are",
        answer=f" {', '.join(chains[0])}.",
        expected=tuple(chains[0]),
        depth=depth,
    )


def _hidden(lines: list[str], places: list[float], rng: random.Random, sentences: int) -> str:
    """``lines`` among so many sentences, each at its place (0 beginning, 1 end)."""
    hay = random.Random(rng.random())
    at: dict[int, list[str]] = {}
    for line, place in zip(lines, places, strict=True):
        at.setdefault(round(place * sentences), []).append(line)
    parts = list(at.get(0, ()))
    for number in range(1, sentences + 1):
        parts += [sentence(hay), *at.get(number, ())]
    return " ".join(parts)
