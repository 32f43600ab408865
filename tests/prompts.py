"""Twenty requests for text, on everyday subjects."""

from __future__ import annotations

from pathlib import Path

SUBJECTS = (
    "a lighthouse keeper who finds a letter in a bottle",
    "how bread rises and why kneading matters",
    "the history of the bicycle",
    "three ways to learn a new language",
    "a robot that wants to become a gardener",
    "why the sky is blue and sunsets are red",
    "the water cycle, from the sea to the mountains and back",
    "a market in a small town on a rainy morning",
    "how to write a clear error message",
    "the difference between speed and acceleration",
    "a detective who is afraid of cats",
    "what makes a good public library",
    "how bees talk to one another",
    "the first day of school of a shy child",
    "how a computer stores numbers",
    "planting a vegetable garden in spring",
    "an old bridge and the people who crossed it",
    "the rules of chess for a beginner",
    "why we sleep and what happens when we do not",
    "a recipe for tomato soup",
)

PROMPTS = tuple(
    f"<|im_start|>user\nWrite a long and detailed text about {subject}. Take your time, begin "
    "at the beginning, and explain every step in full sentences so that a curious reader of any "
    f"age can follow.<|im_end|>\n<|im_start|>assistant\nHere is a text about {subject}.\n\n"
    for subject in SUBJECTS
)

_LICENSE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")

#: The same, each after a passage of the licence, the longer the later: 72 to 707 tokens of SmolLM2.
LONG_PROMPTS = tuple(
    f"{_LICENSE[400 * i : 570 * i]}\n\n{prompt}" for i, prompt in enumerate(PROMPTS)
)
