"""How the command line shows an engine or a plan: bytes, and tables of facts and segments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.table import Table

from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.model_config import ModelConfig
from trt_resa.network import Network, Segment
from trt_resa.values import ValueSpec, node_weight_bytes


def format_bytes(count: float) -> str:
    """In powers of ten, as file managers and the Hugging Face hub do."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} GB"


def facts_table(title: str) -> Table:
    """Two columns: what, and its value."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def add_facts(
    table: Table,
    model: ModelConfig,
    network: Network,
    build: BuildConfig,
    sparse: SparseAttentionConfig,
) -> None:
    """The rows that a plan and an engine directory share."""
    quantized, linears = quantized_linears(network)
    table.add_row("model", f"{model.model_type}, {model.num_layers} layers")
    table.add_row("executors", ", ".join(build.executors))
    table.add_row("dtype", build.dtype)
    table.add_row("INT4 linears", f"{quantized} of {linears}")
    table.add_row(
        "limits",
        f"{build.max_batch_size} sequences of {build.max_seq_len:,} tokens "
        f"(prompt {build.max_input_len:,}), {build.max_num_tokens:,} tokens per dense pass",
    )
    table.add_row(
        "sparse attention",
        f"{sparse.algorithm}: keep_ratio {sparse.keep_ratio:g}, blocks of {sparse.block_size}, "
        f"rectify_mode {sparse.rectify_mode} every {sparse.rectify_interval} tokens",
    )


def quantized_linears(network: Network) -> tuple[int, int]:
    """(in INT4, all) linear nodes."""
    linears = [node for node in network.nodes if node.op == "linear"]
    return sum("qweight" in node.weights for node in linears), len(linears)


def segment_bytes(segment: Segment) -> int:
    """Bytes of a segment's weights."""
    return sum(map(node_weight_bytes, segment.nodes))


def segment_table(
    segments: Sequence[Segment],
    specs: Mapping[str, ValueSpec],
    sizes: Mapping[str, Sequence[int]],
) -> Table:
    """Segments with inputs, outputs and ``sizes`` in bytes, a column each.

    Neighbours that differ in layer numbers alone, and by less than the digits shown, share a row.
    """
    table = Table(title="Segments (T: tokens of a forward, R: logit rows)", title_justify="left")
    for column in ("segment", "inputs", "outputs"):
        table.add_column(column, overflow="fold")
    for column in sizes:
        table.add_column(column, justify="right")
    rows = [
        (
            "\n".join(str(specs[name]) for name in segment.inputs),
            "\n".join(str(specs[name]) for name in segment.outputs),
            *(format_bytes(column[index]) for column in sizes.values()),
        )
        for index, segment in enumerate(segments)
    ]
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and _kind(rows[end]) == _kind(rows[start]):
            continue
        table.add_row(str(start) if end == start + 1 else f"{start} to {end - 1}", *rows[start])
        start = end
    return table


def _kind(row: tuple[str, ...]) -> list[str]:
    return [re.sub(r"layers\.\d+", "layers", text) for text in row]
