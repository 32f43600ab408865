"""What a benchmark measures: batch and context, written as ``8x64K``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trt_resa.errors import ConfigError

#: Shorter contexts hold no few windows to measure.
SHORTEST = 512
LONGEST = 1 << 20
MOST_SEQUENCES = 256
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


@dataclass(frozen=True)
class Point:
    """``batch`` sequences of ``context`` tokens each."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"B{self.batch} x {self.context:,}"


def parse_points(text: str) -> list[Point]:
    """Points of a comma-separated list such as ``1x32K,8x64K``. Raises ConfigError."""
    points = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})x(\d{1,7})([KM]?)", part.strip(), re.IGNORECASE)
        if match is None:
            raise ConfigError(
                f"--points {text}: '{part}' is not batch x context; write it as 1x128K"
            )
        batch, size, unit = int(match[1]), int(match[2]), match[3].upper()
        point = Point(batch, size * _UNITS[unit])
        if not (1 <= point.batch <= MOST_SEQUENCES and SHORTEST <= point.context <= LONGEST):
            raise ConfigError(
                f"--points {text}: {part} is outside 1 to {MOST_SEQUENCES} sequences of "
                f"{SHORTEST} to {LONGEST:,} tokens"
            )
        points.append(point)
    return points
