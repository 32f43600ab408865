"""What a benchmark found at a point, and the figures that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from trt_resa.runtime.bench_gaps import StepProfile


@dataclass(frozen=True)
class LoopTimes:
    """Milliseconds per forward of a decoding loop, by kind of forward."""

    total_ms: float
    tokens: int
    p50_ms: Mapping[str, float]
    p99_ms: Mapping[str, float]

    @classmethod
    def of(cls, times: Sequence[tuple[str, float]]) -> LoopTimes:
        """``times``: (kind, milliseconds) in order.

        A loop ends with a whole window, so its last window's passes count once, and what comes
        before the first window's end is left out: the capture of the graphs is there.
        """
        kinds = [kind for kind, _ in times]
        measured = list(times)
        if "window" in kinds:
            first = kinds.index("window")
            while kinds[first] == "window":
                first += 1
            measured = measured[first:]
        else:
            measured = measured[len(times) // 4 :]
        by_kind: dict[str, list[float]] = {}
        for kind, ms in measured:
            by_kind.setdefault(kind, []).append(ms)
        changes = zip(["", *[k for k, _ in measured]], [k for k, _ in measured], strict=False)
        windows = sum(now == "window" and before != "window" for before, now in changes)
        steps = sum(kind != "window" for kind, _ in measured)
        return cls(
            total_ms=sum(ms for _, ms in measured),
            tokens=steps + windows,
            p50_ms={kind: statistics.median(each) for kind, each in by_kind.items()},
            p99_ms={kind: _p99(each) for kind, each in by_kind.items()},
        )

    @property
    def ms_per_token(self) -> float:
        """Mean time in which every sequence of the batch gets one token, dense passes included."""
        return self.total_ms / self.tokens


@dataclass(frozen=True)
class Parts:
    """A forward's graph, and graphs of its parts, in milliseconds."""

    whole_ms: float
    segments_ms: float
    kernels_ms: Mapping[str, float]

    @property
    def accounted(self) -> float:
        """Sum of the parts over the whole."""
        return (self.segments_ms + sum(self.kernels_ms.values())) / self.whole_ms


@dataclass(frozen=True)
class PointResult:
    """``loops`` by mode, ``parts`` by kind of forward.

    ``sdpa_ms``: attention of one dense decode step over all layers, by backend of PyTorch's SDPA.
    ``profile``: of a sparse step. ``first_token_s``: seconds to read one prompt of ``context``
    tokens and choose a token.
    """

    batch: int
    context: int
    loops: Mapping[str, LoopTimes]
    parts: Mapping[str, Parts]
    sdpa_ms: Mapping[str, float] = field(default_factory=dict)
    profile: StepProfile | None = None
    first_token_s: float | None = None

    @property
    def dense_ms(self) -> float:
        """Time per token of dense decoding with our kernel."""
        return self.loops["dense"].ms_per_token

    @property
    def best_dense_ms(self) -> float:
        """The same with the fastest attention measured in place of our kernel."""
        ours = self.parts["dense decode"].kernels_ms["dense_attention"]
        return self.dense_ms - max(0.0, ours - min(self.sdpa_ms.values(), default=ours))

    @property
    def resa_ms(self) -> float:
        """Time per token of the fastest ReSA loop."""
        return min(loop.ms_per_token for name, loop in self.loops.items() if name != "dense")

    def speedup(self, mode: str) -> float:
        """Of a loop against dense decoding at its best."""
        return self.best_dense_ms / self.loops[mode].ms_per_token

    def record(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "batch": self.batch,
            "context": self.context,
            "ms_per_token": {name: loop.ms_per_token for name, loop in self.loops.items()},
            "tokens_per_second": {
                name: 1e3 * self.batch / loop.ms_per_token for name, loop in self.loops.items()
            },
            "forward_p50_ms": {name: dict(loop.p50_ms) for name, loop in self.loops.items()},
            "forward_p99_ms": {name: dict(loop.p99_ms) for name, loop in self.loops.items()},
            "best_dense_ms_per_token": self.best_dense_ms,
            "speedup_over_best_dense": {
                name: self.speedup(name) for name in self.loops if name != "dense"
            },
            "sdpa_attention_ms": dict(self.sdpa_ms),
            "first_token_s": self.first_token_s,
            "parts": {
                name: {
                    "whole_ms": parts.whole_ms,
                    "segments_ms": parts.segments_ms,
                    "kernels_ms": dict(parts.kernels_ms),
                    "accounted": parts.accounted,
                }
                for name, parts in self.parts.items()
            },
            "sparse_step_profile": None if self.profile is None else asdict(self.profile),
        }


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
