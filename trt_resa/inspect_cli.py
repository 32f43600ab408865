"""``trt-resa inspect``: what an engine directory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from trt_resa import tables
from trt_resa.engine_dir import SEGMENT_FILES, EngineConfig, EngineDirectory, segment_engine
from trt_resa.errors import EngineError
from trt_resa.values import ValueSpec, value_specs


@click.command()
@click.argument("engine_dir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.option("--layers", is_flag=True, help="list the engines' layers; needs a GPU")
def inspect(engine_dir: Path, as_json: bool, layers: bool) -> None:
    """Describe an engine directory."""
    engine = EngineDirectory(engine_dir)
    listings = engine_layers(engine) if layers else None
    if as_json:
        click.echo(json.dumps(describe(engine, listings), indent=1))
        return
    console = Console()
    for table in _summary(engine):
        console.print(table)
    for index, listing in enumerate(listings or ()):
        console.print(_layer_table(index, listing))


def describe(
    engine: EngineDirectory, listings: list[list[dict[str, Any]]] | None = None
) -> dict[str, Any]:
    """config.json's content, and per segment its inputs, outputs, files and bytes."""
    specs = _specs(engine)

    def values(names: tuple[str, ...]) -> list[dict[str, Any]]:
        found = [specs[name] for name in names]
        return [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in found]

    segments = []
    for index, segment in enumerate(engine.network.segments()):
        entry = {
            "inputs": values(segment.inputs),
            "outputs": values(segment.outputs),
            "weight_bytes": tables.segment_bytes(segment),
            "files": {path.name: path.stat().st_size for path in _files(engine, index).values()},
        }
        if listings is not None:
            entry["layers"] = listings[index]
        segments.append(entry)
    config = TypeAdapter(EngineConfig).dump_python(engine.config, mode="json")
    return {"path": str(engine.path), **config, "segments": segments}


def engine_layers(engine: EngineDirectory) -> list[list[dict[str, Any]]]:
    """Per segment, the layers that TensorRT's inspector names; a dictionary each.

    Raises EngineError where the engines cannot be loaded: without a GPU, on a GPU they were not
    built for, or when there are none.
    """
    built_for = engine.config.build_config.executors
    if "tensorrt_rtx" not in built_for:
        raise EngineError(
            f"{engine.path} holds no TensorRT-RTX engines (it was built with --executors "
            f"{','.join(built_for)}), so it has no layers to list; leave out --layers"
        )
    from trt_resa.rtx import check_version, load_engine, trt

    check_version(engine.config.build_info, engine.path)
    listings = []
    for index in range(len(engine.network.attention_nodes) + 1):
        try:
            loaded = load_engine(engine.path / segment_engine(index))
        except EngineError as error:
            raise EngineError(
                f"{error}; listing layers takes an NVIDIA GPU that the engines were built for, and "
                "its driver; leave out --layers elsewhere"
            ) from None
        text = loaded.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        layers = json.loads(text).get("Layers", [])
        listings.append([{"Name": x} if isinstance(x, str) else x for x in layers])
    return listings


def _specs(engine: EngineDirectory) -> dict[str, ValueSpec]:
    config = engine.config
    return value_specs(engine.network, config.pretrained_config, config.build_config.dtype)


def _files(engine: EngineDirectory, index: int) -> dict[str, Path]:
    """The segment's file, by executor that has one per segment."""
    executors = engine.config.build_config.executors
    return {
        executor: engine.path / name(index)
        for executor, name in SEGMENT_FILES.items()
        if executor in executors
    }


def _summary(engine: EngineDirectory) -> tuple[Table, Table]:
    config = engine.config
    model, info = config.pretrained_config, config.build_info
    facts = tables.facts_table(str(engine.path))
    tables.add_facts(
        facts, model, engine.network, config.build_config, config.sparse_attention_config
    )
    facts.add_row("heads", f"{model.num_heads} query, {model.num_kv_heads} KV, of {model.head_dim}")
    facts.add_row("RoPE", f"theta {model.rope.theta:g}, scaling {model.rope.scaling}")
    facts.add_row("built by", f"trt_resa {info.trt_resa_version}, {info.date}")
    facts.add_row("checkpoint", f"{info.checkpoint} (sha256 {info.checkpoint_sha256[:16]})")
    if info.tensorrt_version is None:
        facts.add_row("engines", "none")
    else:
        targets = ", ".join(info.compute_capabilities) or "not recorded"
        facts.add_row(
            "engines",
            f"{info.tensorrt_flavour} {info.tensorrt_version} for compute capability {targets}",
        )
    facts.add_row(
        "kernel library",
        "not recorded"
        if info.kernel_library_sha256 is None
        else f"{info.kernel_library_version} (sha256 {info.kernel_library_sha256[:16]})",
    )
    segments = engine.network.segments()
    sizes: dict[str, list[int]] = {
        executor: [_files(engine, index)[executor].stat().st_size for index in range(len(segments))]
        for executor in _files(engine, 0)
    }
    return facts, tables.segment_table(segments, _specs(engine), sizes)


def _layer_table(index: int, listing: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Layers of segment {index}", title_justify="left")
    table.add_column("type")
    table.add_column("name", overflow="fold")
    for layer in listing:
        table.add_row(str(layer.get("LayerType", "")), str(layer.get("Name", "")))
    return table
