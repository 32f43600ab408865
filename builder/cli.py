"""``trt-resa build-engine``: an engine directory from a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trt_resa.builder import report
from trt_resa.builder.build import (
    COMPUTE_CAPABILITIES,
    DEFAULT_COMPUTE_CAPABILITIES,
    BuiltSegment,
    build_plan,
)
from trt_resa.builder.plan import check_options, plan
from trt_resa.builder.trt_network import TrtOptions
from trt_resa.cli_options import SPARSE_SECTION, given, options_of, read_yaml
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import check_output_dir
from trt_resa.errors import ConfigError
from trt_resa.tables import format_bytes
from trt_resa.validation import parse

_logger = logging.getLogger(__name__)


def _capabilities(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """``80`` and ``8.0`` name the same compute capability."""
    given_names = [part.strip().replace(".", "") for part in text.split(",")]
    known = {capability.replace(".", ""): capability for capability in COMPUTE_CAPABILITIES}
    unknown = [name for name in given_names if name not in known]
    if unknown:
        hint = "; an engine for 80 runs on 9.0 too" if unknown[0].startswith("90") else ""
        raise ConfigError(
            f"--compute_capabilities {text}: '{unknown[0]}' is not supported; choose from "
            f"{','.join(known)}{hint}"
        )
    return tuple(dict.fromkeys(known[name] for name in given_names))


def _memories(_: click.Context, __: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or not all(0 < size < float("inf") for size in sizes):
        raise ConfigError(
            f"--gpu_memory_gb {text} is not a list of sizes; give GB of memory such as 24,80"
        )
    return sizes


@click.command(name="build-engine")
@click.option(
    "--checkpoint_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face model directory with safetensors, a GGUF file, or a TensorRT-LLM checkpoint",
)
@click.option("--output_dir", type=click.Path(path_type=Path), help="engine directory to write")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"YAML with the options below as keys, those of sparse attention under {SPARSE_SECTION}; "
    "a flag wins over the file",
)
@options_of(BuildConfig, SparseAttentionConfig)
@click.option(
    "--compute_capabilities",
    default=",".join(name.replace(".", "") for name in DEFAULT_COMPUTE_CAPABILITIES),
    show_default=True,
    callback=_capabilities,
    help="GPUs the engines run on; an engine for 80 runs on 9.0 too, with TensorRT-RTX up to 1.6",
)
@click.option(
    "--profiling_verbosity",
    type=click.Choice(["none", "layer_names_only", "detailed"]),
    default="detailed",
    show_default=True,
    help="what trt-resa inspect --layers can list",
)
@click.option(
    "--timing_cache",
    type=click.Path(path_type=Path),
    help="file of kernel timings that the executor tensorrt reads and extends; ignored with a "
    "warning elsewhere: TensorRT-RTX times no kernels when it builds",
)
@click.option(
    "--weight_streaming", is_flag=True, help="executor tensorrt: weights may stay in host memory"
)
@click.option(
    "--strip_plan",
    is_flag=True,
    help="executor tensorrt: an engine without weights, to be refitted",
)
@click.option(
    "--log_level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
)
@click.option("--dry_run", is_flag=True, help="print segments and sizes; write nothing")
@click.option(
    "--gpu_memory_gb",
    default=",".join(f"{size:g}" for size in report.GPU_MEMORY_GB),
    show_default=True,
    callback=_memories,
    help="memory of the GPUs that a dry run tells the KV cache's size for",
)
@click.option("--overwrite", is_flag=True, help="replace an engine directory")
def build_engine(
    checkpoint_dir: Path,
    output_dir: Path | None,
    config: Path | None,
    compute_capabilities: tuple[str, ...],
    profiling_verbosity: str,
    timing_cache: Path | None,
    weight_streaming: bool,
    strip_plan: bool,
    log_level: str,
    dry_run: bool,
    gpu_memory_gb: tuple[float, ...],
    overwrite: bool,
    **flags: Any,
) -> None:
    """Build an engine directory from a checkpoint. Needs a GPU for the executor tensorrt alone."""
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    build, sparse = _configurations(config, flags)
    check_options(build, sparse)
    trt_options = TrtOptions(
        profiling_verbosity=profiling_verbosity,
        weight_streaming=weight_streaming,
        strip_plan=strip_plan,
        timing_cache=timing_cache,
    )
    _check_trt_options(build, trt_options)
    console = Console()
    if dry_run:
        planned = plan(checkpoint_dir, build, sparse)
        console.print(report.segment_table(planned))
        console.print(report.size_table(planned, gpu_memory_gb))
        return
    if output_dir is None:
        raise ConfigError("--output_dir is missing; give a directory to write, or --dry_run")
    check_output_dir(output_dir.absolute(), overwrite)
    start = time.perf_counter()
    with _terminated_as_exit(), _progress_bar() as progress:
        planned = plan(checkpoint_dir, build, sparse)
        engine = build_plan(
            planned,
            output_dir,
            overwrite=overwrite,
            compute_capabilities=compute_capabilities,
            profiling_verbosity=profiling_verbosity,
            trt_options=trt_options,
            progress=progress,
        )
    size = sum(file.stat().st_size for file in engine.path.iterdir())
    seconds = time.perf_counter() - start
    console.print(report.summary_table(planned, engine.path, size, seconds))
    path = shlex.quote(str(output_dir))
    click.echo(f"Next: trt-resa generate --engine_dir {path} --prompt 'Once upon a time'")


def _check_trt_options(build: BuildConfig, options: TrtOptions) -> None:
    """Raise ConfigError for what only the executor tensorrt does, where it is not built for."""
    if "tensorrt" in build.executors:
        return
    for flag in ("weight_streaming", "strip_plan"):
        if getattr(options, flag):
            raise ConfigError(
                f"--{flag} is for the executor tensorrt, and this is a build for "
                f"{','.join(build.executors)}; leave it out, or give --executors tensorrt"
            )
    if options.timing_cache is not None:
        _logger.warning("--timing_cache is ignored: TensorRT-RTX has no timing cache")


def _configurations(
    config: Path | None, flags: dict[str, Any]
) -> tuple[BuildConfig, SparseAttentionConfig]:
    """Defaults, overridden by the YAML file, overridden by the flags."""
    content = read_yaml(config)
    sparse_section = content.pop(SPARSE_SECTION, {})
    for section, cls, extra in (
        (content, BuildConfig, (SPARSE_SECTION,)),
        (sparse_section, SparseAttentionConfig, ()),
    ):
        allowed = [*(field.name for field in dataclasses.fields(cls)), *extra]
        unknown = [key for key in section if key not in allowed]
        if unknown:
            place = "" if section is content else f"{SPARSE_SECTION}."
            raise ConfigError(
                f"--config {config}: unknown key '{place}{unknown[0]}'; allowed keys: "
                f"{', '.join(allowed)}"
            )
    origin = "build options" if config is None else f"build options (flags and {config})"
    build = parse(BuildConfig, {**content, **given(BuildConfig, flags)}, origin)
    sparse = parse(
        SparseAttentionConfig, {**sparse_section, **given(SparseAttentionConfig, flags)}, origin
    )
    return build, sparse


@contextlib.contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack, as SIGINT does, so that no half-written directory stays."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[BuiltSegment], None]]:
    """A bar on stderr; nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("segments"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(built: BuiltSegment) -> None:
            size = format_bytes(built.num_bytes)
            _logger.info("segment %d: %s in %.2f s", built.index, size, built.seconds)
            bar.update(task, completed=built.index + 1, total=built.total, description=size)

        yield show
