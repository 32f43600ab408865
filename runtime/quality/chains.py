"""Long chains of steps, each built on the one before: one wrong step spoils all that follow."""

from __future__ import annotations

import random
from collections.abc import Callable

from trt_resa.runtime.quality.samples import Sample
from trt_resa.runtime.quality.words import NOUNS

_WORDS = 6


def arithmetic(seed: int, steps: int) -> Sample:
    """Additions and subtractions of one digit, modulo 100."""
    rng = random.Random(f"arithmetic {seed}")
    value = rng.randrange(100)
    start, orders, lines = value, [], []
    for number in range(1, steps + 1):
        sign, operand = rng.choice((1, -1)), rng.randrange(1, 10)
        result = (value + sign * operand) % 100
        orders.append(f"Step {number}: {'add' if sign > 0 else 'subtract'} {operand}")
        symbol = "+" if sign > 0 else "-"
        lines.append(f"Step {number}: {value:02} {symbol} {operand} = {result:02}")
        value = result
    return _chain(
        "arithmetic",
        f"Start with the number {start:02} and apply the steps below in order, modulo 100. Write "
        'one line per step with two digits, such as "Step 1: 97 + 5 = 02".',
        orders,
        lines,
    )


def lists(seed: int, steps: int) -> Sample:
    """Rearrangements of a list of words."""
    rng = random.Random(f"lists {seed}")
    words = rng.sample(NOUNS, _WORDS)
    start, orders, lines = " ".join(words), [], []
    for number in range(1, steps + 1):
        order = rng.choice(list(_ORDERS))
        words = _ORDERS[order](words)
        orders.append(f"Step {number}: {order}")
        lines.append(f"Step {number}: {' '.join(words)}")
    return _chain(
        "lists",
        f"Start with the list: {start}. Apply the steps below in order. Write one line per step "
        'with the list after it, such as "Step 1: fox owl bell".',
        orders,
        lines,
    )


_ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "move the first word to the end": lambda words: [*words[1:], words[0]],
    "move the last word to the front": lambda words: [words[-1], *words[:-1]],
    "swap the first two words": lambda words: [words[1], words[0], *words[2:]],
    "swap the last two words": lambda words: [*words[:-2], words[-1], words[-2]],
    "reverse the list": lambda words: words[::-1],
}
CHAIN_TASKS: dict[str, Callable[[int, int], Sample]] = {"arithmetic": arithmetic, "lists": lists}


def _chain(task: str, rule: str, orders: list[str], lines: list[str]) -> Sample:
    """The answer's first words are given, so that every model takes up the form."""
    prefix = "Step 1:"
    return Sample(
        task=task,
        body="\n".join((rule, *orders)),
        prefix=prefix,
        answer="\n".join(lines).removeprefix(prefix),
        expected=tuple(lines),
    )
