"""What is trained, and how: sizes, the course of the context, rates and weights of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from documents import Kind


@dataclass(frozen=True)
class Stage:
    """``end``: the share of the training at which it ends; ``mix``: how often each length comes."""

    end: float
    mix: Mapping[int, float]


@dataclass(frozen=True)
class Recipe:
    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 704
    layers: int = 8
    heads: int = 4
    stages: tuple[Stage, ...] = (
        Stage(0.3, {1024: 1.0}),
        Stage(0.5, {1024: 0.4, 8192: 0.6}),
        Stage(1.0, {1024: 0.1, 8192: 0.5, 16384: 0.4}),
    )
    tokens_per_step: int = 65536
    #: Of the matrices (Muon), and of the embedding and the norms (AdamW).
    matrix_rate: float = 5e-3
    vector_rate: float = 3e-3
    #: Steps in which the rates rise, and the share of the training after which they fall to 0.
    warmup: int = 100
    decay_from: float = 0.5
    #: Of a token of each Kind in the mean loss; what is not named weighs 1.
    loss_weights: Mapping[Kind, float] = field(
        default_factory=lambda: {
            Kind.CONTEXT: 0.03,
            Kind.TEXT: 0.1,
            Kind.SINGLE: 3.0,
            Kind.MULTI_KEY: 3.0,
            Kind.MULTI_VALUE: 3.0,
            Kind.VARIABLE_TRACKING: 3.0,
        }
    )

    @property
    def context(self) -> int:
        """The longest row: the model's context."""
        return max(max(stage.mix) for stage in self.stages)

    @property
    def scored(self) -> list[int]:
        """Lengths of documents at the end: also such as no row has."""
        powers = [self.context >> shift for shift in range(5)]
        return sorted([*powers, *(each * 3 // 4 for each in powers[:-1])])

    def rate(self, progress: float, step: int) -> float:
        """Share of the full rates at a share of the training, ``step`` steps after its start."""
        rising = min(1.0, (step + 1) / self.warmup)
        return rising * min(1.0, max(0.0, (1 - progress) / (1 - self.decay_from)))

    def weight(self, kind: Kind) -> float:
        return self.loss_weights.get(kind, 1.0)


FULL = Recipe()
#: To try the script: a tiny model in short contexts.
TINY = Recipe(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=96,
    layers=2,
    heads=2,
    stages=(Stage(0.5, {512: 1.0}), Stage(1.0, {512: 0.5, 1024: 0.5})),
    tokens_per_step=2048,
    warmup=4,
)
