"""``trt-resa bench``: time per token by context and batch, dense and ReSA, in one run."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import torch
from rich.console import Console
from rich.progress import Progress

from trt_resa.cli_options import given, options_of
from trt_resa.config import ExecutorName, KvCacheConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError
from trt_resa.kernels import load_library
from trt_resa.runtime import bench_report
from trt_resa.runtime.bench_points import Point, parse_points
from trt_resa.runtime.bench_results import PointResult
from trt_resa.runtime.executors.engine_loading import (
    BUILT_FOR,
    Linears,
    choose_linears,
    faster_linears,
)
from trt_resa.validation import parse, replace

KV_CACHE_PREFIX = "kv_cache_"
_DEFAULT_POINTS = "1x32K,1x64K,1x128K"


@dataclass(frozen=True)
class ShapeBuild:
    """How to build a random engine: its limits, its types, and the executor that it is for."""

    max_seq_len: int
    max_batch_size: int
    dtype: str
    quantization: str
    executor: ExecutorName


#: Builds an engine directory of random weights: (shape, directory, how, settings). The command is
#: given one, since the runtime knows no builder.
BuildShape = Callable[[str, Path, ShapeBuild, SparseAttentionConfig], EngineDirectory]


def make_command(build_shape: BuildShape, shapes: list[str]) -> click.Command:
    """The command, with a builder for ``--shape``."""

    @click.command()
    @click.option("--engine_dir", type=click.Path(path_type=Path), help="engine directory")
    @click.option(
        "--shape",
        type=click.STRING,
        help=f"random weights of a published shape: {', '.join(shapes)}",
    )
    @click.option("--dtype", type=click.Choice(["float16", "bfloat16"]), default="bfloat16",
                  show_default=True, help="with --shape")  # fmt: skip
    @click.option("--quantization", type=click.Choice(["none", "w4a16"]), default="w4a16",
                  show_default=True, help="with --shape")  # fmt: skip
    @click.option("--linears", type=click.Choice(get_args(Linears)), default="auto",
                  show_default=True, help="what runs the segments")  # fmt: skip
    @click.option("--points", default=_DEFAULT_POINTS, show_default=True,
                  help="batch x context of each measurement, as 8x64K; K is 1,024")  # fmt: skip
    @click.option("--prefill", is_flag=True,
                  help="also time the first token, which can take minutes")  # fmt: skip
    @click.option("--output", type=click.Path(path_type=Path), help="write JSON to this file")
    @click.option("--plot", type=click.Path(path_type=Path), help="write a PNG to this file")
    @options_of(SparseAttentionConfig)
    @options_of(KvCacheConfig, prefix=KV_CACHE_PREFIX, only=("free_gpu_memory_fraction",))
    def bench(
        engine_dir: Path | None,
        shape: str | None,
        dtype: str,
        quantization: str,
        linears: Linears,
        points: str,
        prefill: bool,
        output: Path | None,
        plot: Path | None,
        **flags: Any,
    ) -> None:
        """Time per token by context and batch: dense, and ReSA with its dense passes counted in.

        The KV cache is filled with noise, so no prompt is read. Needs a GPU.
        """
        wanted = parse_points(points)
        if (engine_dir is None) == (shape is None):
            raise ConfigError("give either --engine_dir DIR or --shape NAME")
        if shape is not None and shape not in shapes:
            raise ConfigError(f"shape '{shape}' is not known; choose from {', '.join(shapes)}")
        if plot is not None:
            bench_report.check_plot()
        changes = given(SparseAttentionConfig, flags)
        parse(SparseAttentionConfig, changes, "flags")
        cache = parse(KvCacheConfig, given(KvCacheConfig, flags, KV_CACHE_PREFIX), "flags")
        if not torch.cuda.is_available():
            raise ConfigError("bench measures on an NVIDIA GPU, and PyTorch sees none")
        with tempfile.TemporaryDirectory() as work:
            if engine_dir is not None:
                engine = EngineDirectory(engine_dir)
            else:
                assert shape is not None
                sparse = parse(SparseAttentionConfig, changes, "flags")
                longest = max(point.context for point in wanted)
                batch = max(point.batch for point in wanted)
                target = Path(work) / shape
                if linears == "auto":
                    capability = torch.cuda.get_device_capability()
                    linears = faster_linears(quantization != "none", capability)
                with _timed("built"):
                    build = ShapeBuild(longest, batch, dtype, quantization, BUILT_FOR[linears])
                    engine = build_shape(shape, target, build, sparse)
            sparse = replace(engine.config.sparse_attention_config, changes, "flags")
            name = shape or engine.path.name
            _run(name, engine, linears, sparse, cache, wanted, prefill, output, plot)

    return bench


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    click.echo(f"[trt-resa] {what} in {time.perf_counter() - start:.1f} s", err=True)


def _run(
    name: str,
    engine: EngineDirectory,
    linears: Linears,
    sparse: SparseAttentionConfig,
    cache: KvCacheConfig,
    points: list[Point],
    prefill: bool,
    output: Path | None,
    plot: Path | None,
) -> None:
    from trt_resa.runtime.bench import Bench

    console = Console(stderr=True)
    results: list[PointResult] = []
    with Progress(console=console) as progress:
        task = progress.add_task("loading", total=len(points))
        with _timed("loaded"):
            bench = Bench(engine, linears, sparse, cache, points)
        most_tokens = bench.most_tokens
        for point in points:
            progress.update(task, description=str(point))
            if bench.fits(point):
                results.append(bench.measure(point, prefill))
            else:
                console.print(f"{point} is left out: {bench.shortage(point)}")
            progress.advance(task)
    model, build = engine.config.pretrained_config, engine.config.build_config
    facts = {
        "model": name,
        "gpu": torch.cuda.get_device_name(),
        "linears": choose_linears(linears, engine, torch.cuda.get_device_capability()),
        "tensorrt": engine.config.build_info.tensorrt_version,
        "kernel_library": load_library().version,
        "torch": torch.__version__,
        "dtype": build.dtype,
        "quantization": build.quantization,
        "layers": model.num_layers,
        "keep_ratio": sparse.keep_ratio,
        "rectify_interval": sparse.rectify_interval,
        "dense_below": sparse.dense_below,
        "most_cache_tokens": most_tokens,
        "command": shlex.join(["trt-resa", *sys.argv[1:]]),
    }
    title = (
        f"{name}, {facts['gpu']}, {build.dtype}, {build.quantization}, linears "
        f"{facts['linears']}: ms per token"
    )
    Console(width=120).print(bench_report.table(results, title))
    if output is not None:
        bench_report.write_json(output, facts, results)
    if plot is not None:
        bench_report.write_plot(plot, title, results)
