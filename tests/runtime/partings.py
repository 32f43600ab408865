"""Where two greedy outputs part first, how near their two tokens were to a tie there, and how much
the two runs differ before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from trt_resa.runtime.outputs import CompletionOutput


def gap_at_the_parting(ours: CompletionOutput, theirs: CompletionOutput) -> float | None:
    """None where the tokens agree; else how much less likely ``theirs`` finds our token than its
    own where they part first, as a difference of log probabilities. Infinite when our token is not
    among those that ``theirs`` reports (``SamplingParams.logprobs``)."""
    pairs = zip(ours.token_ids, theirs.token_ids, strict=True)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return None
    assert theirs.logprobs is not None
    found = theirs.logprobs[place]
    return found[theirs.token_ids[place]] - found.get(ours.token_ids[place], float("-inf"))


def noise(ours: Sequence[CompletionOutput], theirs: Sequence[CompletionOutput]) -> float:
    """By how much (root mean square) the log probabilities of the two likeliest tokens of
    ``theirs`` stand otherwise to one another in ``ours``; up to where outputs part."""
    moved = [m for a, b in zip(ours, theirs, strict=True) for m in _moved(a, b)]
    return fmean(m * m for m in moved) ** 0.5


def _moved(ours: CompletionOutput, theirs: CompletionOutput) -> Iterator[float]:
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    for place, found in enumerate(theirs.logprobs):
        first, second = sorted(found, key=found.__getitem__, reverse=True)[:2]
        own = ours.logprobs[place]
        if first in own and second in own:
            yield own[first] - own[second] - (found[first] - found[second])
        if ours.token_ids[place] != theirs.token_ids[place]:
            return


def check_partings(
    ours: Sequence[CompletionOutput],
    theirs: Sequence[CompletionOutput],
    equal: int,
    tie: float,
) -> None:
    """At least ``equal`` outputs have the same tokens, and no other parts by more than ``tie``."""
    gaps = [gap_at_the_parting(a, b) for a, b in zip(ours, theirs, strict=True)]
    parted = [gap for gap in gaps if gap is not None]
    print(f"{gaps.count(None)} of {len(gaps)} equal; gaps of the others:", *parted)
    assert all(gap <= tie for gap in parted), gaps
    assert gaps.count(None) >= equal, gaps
