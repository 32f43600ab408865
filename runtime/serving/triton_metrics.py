"""The state of the LLM and the speed of its answers as Triton's custom metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trt_resa.runtime.metrics import Metrics


@dataclass(frozen=True)
class _Family:
    name: str
    description: str
    counter: bool = True


#: By field of Metrics. The gauges stand last: who sees that all is idle sees final counts.
LLM_FAMILIES = {
    "kv_blocks_reused": _Family("kv_blocks_reused_total", "Blocks found instead of computed"),
    "prompt_tokens": _Family("prompt_tokens_total", "Tokens of prompts"),
    "generated_tokens": _Family("generated_tokens_total", "Tokens generated"),
    "sparse_steps": _Family("sparse_steps_total", "Sparse steps, as forwards"),
    "dense_passes": _Family("dense_passes_total", "Dense passes, as forwards"),
    "blocks_attended": _Family(
        "blocks_attended_total", "Blocks that sparse steps attended to, per layer and KV head"
    ),
    "drafts_proposed": _Family("drafts_proposed_total", "Drafts checked by a dense pass"),
    "drafts_accepted": _Family("drafts_accepted_total", "Drafts that the check accepted"),
    "verifications": _Family("verifications_total", "Windows whose drafts were checked"),
    "drift_rows": _Family("drift_rows_total", "Sparse steps compared with a dense pass"),
    "drift_agreed": _Family("drift_agreed_total", "Of these, with the same likeliest token"),
    "drift_kl": _Family("drift_kl_nats_total", "Sum of their KL(dense || sparse) in nats"),
    "preemptions": _Family("preemptions_total", "Sequences that had to start again"),
    "step_seconds_sparse": _Family("sparse_step_seconds_total", "Time of the sparse steps"),
    "step_seconds_dense": _Family("dense_pass_seconds_total", "Time of the dense passes"),
    "requests_active": _Family("requests_active", "Requests being generated", False),
    "requests_queued": _Family("requests_queued", "Requests that wait to begin", False),
    "kv_blocks_used": _Family("kv_blocks_used", "KV cache blocks held by requests", False),
    "kv_blocks_total": _Family("kv_blocks_total", "KV cache blocks", False),
}

#: Measured where responses leave. Time per token: decode_seconds_total / decode_tokens_total.
ANSWER_FAMILIES = (
    _Family("first_token_seconds_total", "Time from arrival to the first piece, over requests"),
    _Family("first_tokens_total", "Requests whose first piece was sent"),
    _Family("decode_seconds_total", "Time from the first piece to the last, over requests"),
    _Family("decode_tokens_total", "Tokens after the first piece"),
)


class TritonMetrics:
    """Each metric as ``trt_resa_NAME``; only what changed is passed to the server.

    ``backend``: the module ``triton_python_backend_utils``. Not thread-safe.
    """

    def __init__(self, backend: Any, labels: Mapping[str, str]) -> None:
        self._shown: dict[str, float] = {}
        self._families: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._answers = dict.fromkeys((family.name for family in ANSWER_FAMILIES), 0.0)
        for family in (*LLM_FAMILIES.values(), *ANSWER_FAMILIES):
            kind = backend.MetricFamily.COUNTER if family.counter else backend.MetricFamily.GAUGE
            self._families[family.name] = backend.MetricFamily(
                name=f"trt_resa_{family.name}", description=family.description, kind=kind
            )
            self._metrics[family.name] = self._families[family.name].Metric(labels=dict(labels))

    def first_piece(self, seconds: float) -> None:
        """A request's first piece left ``seconds`` after the request came."""
        self._answers["first_token_seconds_total"] += seconds
        self._answers["first_tokens_total"] += 1

    def last_piece(self, seconds: float, tokens: int) -> None:
        """The last left ``seconds`` after the first, with ``tokens`` more tokens in all."""
        self._answers["decode_seconds_total"] += seconds
        self._answers["decode_tokens_total"] += tokens

    def update(self, metrics: Metrics) -> None:
        for family in ANSWER_FAMILIES:
            self._show(family, self._answers[family.name])
        for field, family in LLM_FAMILIES.items():
            self._show(family, float(getattr(metrics, field)))

    def _show(self, family: _Family, value: float) -> None:
        change = value - self._shown.get(family.name, 0.0)
        if change == 0:
            return
        metric = self._metrics[family.name]
        if family.counter:
            metric.increment(change)
        else:
            metric.set(value)
        self._shown[family.name] = value
