"""A question with a checkable answer, and how many of its parts make it as long as wanted."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from trt_resa.errors import ConfigError


@dataclass(frozen=True)
class Sample:
    """The model reads ``body``, and its answer begins with ``prefix``; ``answer`` continues that.

    ``expected``: what a right answer contains; for a chain, its lines in order. ``depth``: where in
    the text the answer is, 0 at its beginning and 1 at its end.
    """

    task: str
    body: str
    prefix: str
    answer: str
    expected: tuple[str, ...]
    depth: float | None = None


def fitting(make: Callable[[int], Sample], size: Callable[[Sample], int], limit: int) -> Sample:
    """The sample ``make(n)`` of the largest n >= 1 whose size, growing with n, is within ``limit``.

    Raises ConfigError when not even ``make(1)`` fits.
    """
    most = 1
    while size(make(most)) <= limit:
        most *= 2
    count = bisect.bisect_right(range(1, most), limit, key=lambda n: size(make(n)))
    if count == 0:
        sample = make(1)
        raise ConfigError(
            f"task {sample.task} takes at least {size(sample)} tokens and {limit} were asked for; "
            "ask for more"
        )
    return make(count)
