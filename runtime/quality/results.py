"""What an evaluation found: a record per task, length and variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.outputs import CompletionOutput
from trt_resa.runtime.quality.drift import TokenDrift
from trt_resa.runtime.stats import total


@dataclass(frozen=True)
class Answers:
    """Of generated answers, shares from 0 to 1.

    ``score``: right answers; None where nobody knows the right one. ``steps_right``: of a chain,
    the steps before the first error, and ``first_errors`` their numbers (None: no error).
    ``same_as_dense``: leading tokens that are those of the dense answer.
    """

    score: float | None
    same_as_dense: float
    by_depth: Mapping[float, float] = field(default_factory=dict)
    steps_right: float | None = None
    first_errors: Sequence[int | None] = ()


@dataclass(frozen=True)
class Drift:
    """Of forced texts; see TokenDrift."""

    agreement: float
    mean_kl: float
    perplexity: float
    kl_by_position: Mapping[int, float]
    kl_by_piece: Sequence[float]

    @classmethod
    def of(cls, tokens: TokenDrift) -> Drift:
        return cls(
            tokens.agreement,
            tokens.mean_kl,
            tokens.perplexity,
            tokens.kl_by_position(),
            tokens.kl_by_piece(),
        )


@dataclass(frozen=True)
class Cost:
    """``read_share``: cache blocks read, against dense decoding. ``tokens_per_dense_pass``: None
    without dense passes. ``drafts_accepted``: a share, None without drafts. ``ms_per_token``: time
    of the forwards over the tokens of all sequences.
    """

    read_share: float
    tokens_per_dense_pass: float | None
    drafts_accepted: float | None
    ms_per_token: float

    @classmethod
    def of(cls, outputs: Sequence[CompletionOutput], seconds: float) -> Cost:
        """``seconds``: time of the forwards that made ``outputs``."""
        stats = total(output.stats for output in outputs)
        tokens = sum(len(output.token_ids) for output in outputs)
        return cls(
            read_share=stats.read_share,
            tokens_per_dense_pass=tokens / stats.dense_passes if stats.dense_passes else None,
            drafts_accepted=stats.drafts_accepted / stats.drafts if stats.drafts else None,
            ms_per_token=1e3 * seconds / tokens,
        )


def step_seconds(metrics: Metrics) -> float:
    """Time of all forwards so far."""
    return metrics.step_seconds_sparse + metrics.step_seconds_dense


@dataclass(frozen=True)
class Result:
    """``length``: tokens of the prompt; of a chain, of its answer.

    ``answers`` and ``cost`` where text was generated, ``drift`` where it was forced.
    """

    task: str
    length: int
    samples: int
    variant: str
    answers: Answers | None = None
    cost: Cost | None = None
    drift: Drift | None = None

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
