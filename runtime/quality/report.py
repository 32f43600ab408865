"""Results as tables, for a terminal and as Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from trt_resa.errors import ConfigError
from trt_resa.runtime.quality.results import Result


@dataclass(frozen=True)
class Grid:
    """A table: a row per variant, a column per task and length."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join([self.title, "", *(f"| {' | '.join(line)} |" for line in lines)])


#: Of the tables: what they show, and a result's cell (None: the result has none).
_FIGURES: tuple[tuple[str, Callable[[Result], str | None]], ...] = (
    (
        "Right answers, %",
        lambda r: None if r.answers is None else _percent(r.answers.score),
    ),
    (
        "Steps of a chain before the first error, %",
        lambda r: None if r.answers is None else _percent(r.answers.steps_right),
    ),
    (
        "Leading tokens of an answer that are the dense answer's, %",
        lambda r: None if r.answers is None else _percent(r.answers.same_as_dense),
    ),
    (
        "Along a given text, tokens whose likeliest successor is the dense model's, %",
        lambda r: None if r.drift is None else _percent(r.drift.agreement),
    ),
    (
        "Along a given text, KL from dense, millinats a token",
        lambda r: None if r.drift is None else f"{1e3 * r.drift.mean_kl:.2f}",
    ),
    (
        "Perplexity of the text",
        lambda r: None if r.drift is None else f"{r.drift.perplexity:.3f}",
    ),
    (
        "Cache blocks read, % of dense decoding",
        lambda r: None if r.cost is None else _percent(r.cost.read_share),
    ),
    (
        "Tokens per dense pass of a sequence",
        lambda r: None if r.cost is None else _number(r.cost.tokens_per_dense_pass),
    ),
    ("Drafts accepted, %", lambda r: None if r.cost is None else _percent(r.cost.drafts_accepted)),
    (
        "Time of the forwards per token, all sequences of the task together, ms",
        lambda r: None if r.cost is None else _number(r.cost.ms_per_token),
    ),
)


def grids(results: Sequence[Result]) -> list[Grid]:
    """One per figure that any result has."""
    return [grid for title, cell in _FIGURES if (grid := _grid(title, cell, results)).rows]


def _grid(title: str, cell: Callable[[Result], str | None], results: Sequence[Result]) -> Grid:
    cells = {(r.variant, (r.task, r.length)): text for r in results if (text := cell(r))}
    columns = [key for key in dict.fromkeys((r.task, r.length) for r in results)
               if any(key == column for _, column in cells)]  # fmt: skip
    variants = [name for name in dict.fromkeys(r.variant for r in results)
                if any(name == variant for variant, _ in cells)]  # fmt: skip
    return Grid(
        title,
        ("settings", *(f"{task} {length}" for task, length in columns)),
        tuple((name, *(cells.get((name, key), "-") for key in columns)) for name in variants),
    )


def write_json(path: Path, facts: dict[str, Any], results: Sequence[Result]) -> None:
    """``facts``: the model, machine, settings and command that the figures belong to."""
    content = {**facts, "results": [result.record() for result in results]}
    _write(path, json.dumps(content, indent=1) + "\n")


def write_markdown(path: Path, facts: dict[str, Any], results: Sequence[Result]) -> None:
    counts = dict.fromkeys(f"{r.task} {r.length}: {r.samples}" for r in results)
    head = "\n".join(
        [
            f"# Quality of {facts['model']}",
            "",
            f"    {facts['command']}",
            "",
            *(f"- {key}: {value}" for key, value in facts.items() if key not in _HEAD),
            f"- samples: {', '.join(counts)}",
        ]
    )
    _write(path, "\n\n".join([head, *(grid.markdown() for grid in grids(results))]) + "\n")


_HEAD = ("model", "command")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
