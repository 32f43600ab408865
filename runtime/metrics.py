"""What an LLM holds now and has done so far."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Metrics:
    """A snapshot between two forwards. The first four fields are gauges, the rest only grow.

    A request is active while one of its sequences runs and queued while none does.
    ``kv_blocks_used`` are held by running sequences; ``kv_blocks_reused`` were found in the cache
    instead of being computed. ``prompt_tokens`` count when a prompt's prefill ends,
    ``generated_tokens`` when they are final. ``sparse_steps`` and ``dense_passes`` are forwards,
    however many sequences take part; ``step_seconds_sparse`` and ``step_seconds_dense`` are their
    time, sampling included. ``blocks_attended`` is summed over the sequences of the sparse steps,
    for one layer and KV head. ``verifications``, ``drift_rows``, ``drift_agreed`` and ``drift_kl``
    are explained at SequenceStats. ``preemptions``: how often a sequence had to give its blocks
    back and compute them again later; sparse steps that it then repeats count as forwards alone.
    """

    requests_active: int = 0
    requests_queued: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_blocks_reused: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    sparse_steps: int = 0
    dense_passes: int = 0
    blocks_attended: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    verifications: int = 0
    drift_rows: int = 0
    drift_agreed: int = 0
    drift_kl: float = 0.0
    preemptions: int = 0
    step_seconds_sparse: float = 0.0
    step_seconds_dense: float = 0.0

    def plus(self, **amounts: float) -> Metrics:
        """A copy with the named fields raised."""
        raised = {name: getattr(self, name) + amount for name, amount in amounts.items()}
        return dataclasses.replace(self, **raised)
