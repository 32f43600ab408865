"""Tables that ``trt-resa build-engine`` prints: what a build would make, and what it made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from trt_resa import tables
from trt_resa.builder.plan import Plan
from trt_resa.config import KvCacheConfig
from trt_resa.tables import format_bytes
from trt_resa.values import ELEMENT_BYTES

#: Memory of the GPUs that a dry run answers for, in units of 2^30 bytes as nvidia-smi counts.
GPU_MEMORY_GB = (24.0, 48.0, 80.0, 141.0)

_GIB = 1 << 30


def kv_bytes_per_token(planned: Plan) -> float:
    """Cache bytes per token over all layers, summaries included."""
    element = ELEMENT_BYTES[planned.build.dtype]
    return planned.model.kv_bytes_per_token(planned.sparse.block_size, element)


def cache_tokens(planned: Plan, gpu_memory_gb: float) -> int:
    """Tokens of KV cache beside the weights on a GPU, over all sequences; 0 if weights do not fit.

    Takes the runtime's default share of the free memory and leaves activations out.
    """
    free = gpu_memory_gb * _GIB - planned.weight_bytes
    share = KvCacheConfig().free_gpu_memory_fraction
    return max(0, int(share * free / kv_bytes_per_token(planned)))


def segment_table(planned: Plan) -> Table:
    """Segments with inputs, outputs and bytes of weights."""
    segments = planned.network.segments()
    sizes = {"weights each": [tables.segment_bytes(segment) for segment in segments]}
    return tables.segment_table(segments, planned.specs, sizes)


def size_table(planned: Plan, gpu_memory_gb: Sequence[float]) -> Table:
    """Sizes of a build that was not made."""
    table = tables.facts_table("Dry run: nothing was written")
    tables.add_facts(table, planned.model, planned.network, planned.build, planned.sparse)
    table.add_row("weights on the GPU", format_bytes(planned.weight_bytes))
    table.add_row("engine directory", f"about {format_bytes(planned.output_bytes)}")
    table.add_row("KV cache per token", format_bytes(kv_bytes_per_token(planned)))
    for memory in gpu_memory_gb:
        tokens = cache_tokens(planned, memory)
        held = f"{tokens:,} tokens of KV cache" if tokens else "too small for the weights"
        table.add_row(f"GPU of {memory:g} GB", held)
    return table


def summary_table(planned: Plan, path: Path, num_bytes: int, seconds: float) -> Table:
    """What was built."""
    table = tables.facts_table("Engine directory")
    tables.add_facts(table, planned.model, planned.network, planned.build, planned.sparse)
    table.add_row("segments", str(len(planned.network.attention_nodes) + 1))
    table.add_row("size", format_bytes(num_bytes))
    table.add_row("time", f"{seconds:.1f} s")
    table.add_row("path", str(path))
    return table
