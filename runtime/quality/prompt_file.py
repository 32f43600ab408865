"""Prompts that the user brings: one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trt_resa.errors import ConfigError


@dataclass(frozen=True)
class UserPrompt:
    """``answers``: what a right answer contains; empty when nobody said."""

    text: str
    answers: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[UserPrompt]:
    """A line holds {"prompt": text} and may hold "answers": [texts]; other keys are left alone.

    Raises ConfigError with the number of the first bad line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path} cannot be read: {error}") from None
    prompts = [
        _prompt(line, f"--prompts {path} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"--prompts {path} holds no prompt; give one JSON object a line")
    return prompts


def _prompt(line: str, where: str) -> UserPrompt:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    text = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text:
        raise ConfigError(f'{where} must be an object with a text "prompt"')
    answers = content.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(each, str) and each for each in answers):
        raise ConfigError(f'{where}: "answers" must be a list of texts')
    return UserPrompt(text, tuple(answers))
