"""Writes an engine directory from a checkpoint, one segment in memory at a time."""

from __future__ import annotations

import datetime
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from trt_resa.builder.plan import Plan, plan
from trt_resa.builder.trt_network import TrtOptions, decoder_writer
from trt_resa.builder.weights import WeightLoader
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.engine_dir import (
    ATTENTION_WEIGHTS,
    FORMAT_VERSION,
    MODEL_ENGINE,
    SEGMENT_FILES,
    BuildInfo,
    EngineConfig,
    EngineDirectory,
    check_output_dir,
    segment_engine,
    segment_weights,
    under_construction,
    write_description,
)
from trt_resa.errors import EngineError
from trt_resa.kernels import KernelLibraryError, load_library
from trt_resa.version import __version__

#: Compute capabilities that an engine can target and the kernels are compiled for.
COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
#: The portable set. TensorRT-RTX cannot target 9.0, but 1.4 to 1.6 run an engine for 8.0 on it.
DEFAULT_COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltSegment:
    """Segment ``index`` of ``total`` is written; ``num_bytes`` over all its files."""

    index: int
    total: int
    num_bytes: int
    seconds: float


def build(
    checkpoint_dir: Path | str,
    output_dir: Path | str,
    build: BuildConfig,
    sparse: SparseAttentionConfig,
    *,
    overwrite: bool = False,
    compute_capabilities: Sequence[str] = DEFAULT_COMPUTE_CAPABILITIES,
    profiling_verbosity: str = "detailed",
    trt_options: TrtOptions | None = None,
    progress: Callable[[BuiltSegment], None] = lambda _: None,
) -> EngineDirectory:
    """Build an engine directory; ``output_dir`` is whole afterwards, or as it was on any error.

    ``compute_capabilities`` is a choice of ``COMPUTE_CAPABILITIES`` for TensorRT-RTX;
    ``profiling_verbosity`` (none, layer_names_only or detailed) is what the engine inspector can
    list later; ``trt_options`` are those of the executor tensorrt. Memory stays below twice the
    larger of the largest segment and the largest checkpoint shard, plus 1 GiB, most of which are
    libraries: those of a PyTorch with CUDA take some 25 MB more than that. For the executor
    tensorrt, which takes all weights at once, it is several times the model. Raises ConfigError,
    CheckpointError or EngineError.
    """
    check_output_dir(Path(output_dir).absolute(), overwrite)
    return build_plan(
        plan(checkpoint_dir, build, sparse),
        output_dir,
        overwrite=overwrite,
        compute_capabilities=compute_capabilities,
        profiling_verbosity=profiling_verbosity,
        trt_options=trt_options,
        progress=progress,
    )


def build_plan(
    planned: Plan,
    output_dir: Path | str,
    *,
    overwrite: bool = False,
    compute_capabilities: Sequence[str] = DEFAULT_COMPUTE_CAPABILITIES,
    profiling_verbosity: str = "detailed",
    trt_options: TrtOptions | None = None,
    share_layers: bool = False,
    progress: Callable[[BuiltSegment], None] = lambda _: None,
) -> EngineDirectory:
    """``build`` from a plan already made.

    ``share_layers``: segment 1 stands for every segment but the first and the last; for random
    weights, whose layers differ in nothing but names.
    """
    loader = WeightLoader(planned.checkpoint, planned.description, planned.build)
    writers = _writers(planned, compute_capabilities, profiling_verbosity)
    write_decoder = None
    if "tensorrt" in planned.build.executors:
        options = trt_options or TrtOptions(profiling_verbosity=profiling_verbosity)
        write_decoder = decoder_writer(planned, options)
    segments = planned.network.segments()
    with under_construction(output_dir, overwrite) as work:
        _check_space(work, planned)
        weights: dict[str, torch.Tensor] = {}
        for index, segment in enumerate(segments if writers else ()):
            start = time.perf_counter()
            if share_layers and 1 < index < len(segments) - 1:
                files = _copies(planned, work, index, weights)
            else:
                weights = {}  # makes room for the next ones
                weights = loader.load(segment.weights)
                files = [write(work, index, weights) for write in writers]
            seconds = time.perf_counter() - start
            num_bytes = sum(file.stat().st_size for file in files)
            progress(BuiltSegment(index, len(segments), num_bytes, seconds))
        weights = {}
        of_attention = [
            weight for node in planned.network.attention_nodes for weight in node.weights.values()
        ]
        if of_attention:
            _save(loader.load(of_attention), work / ATTENTION_WEIGHTS)
        if write_decoder is not None:
            everything = [w for node in planned.network.nodes for w in node.weights.values()]
            write_decoder(loader.load(everything), work / MODEL_ENGINE)
        planned.checkpoint.save_tokenizer(work)
        write_description(work, _engine_config(planned, compute_capabilities), planned.network)
    return EngineDirectory(output_dir)


#: Writes segment ``index`` into a directory and returns the file.
_Writer = Callable[[Path, int, Mapping[str, torch.Tensor]], Path]


def _writers(
    planned: Plan, compute_capabilities: Sequence[str], profiling_verbosity: str
) -> list[_Writer]:
    """One per executor of the plan that has a file per segment."""
    return [
        _engine_writer(planned, compute_capabilities, profiling_verbosity)
        if executor == "tensorrt_rtx"
        else _write_weights
        for executor in planned.build.executors
        if executor in SEGMENT_FILES
    ]


def _engine_writer(
    planned: Plan, compute_capabilities: Sequence[str], profiling_verbosity: str
) -> _Writer:
    from trt_resa.builder.rtx import RtxOptions, build_segment

    segments, specs = planned.network.segments(), planned.specs
    options = RtxOptions(
        max_batch_size=planned.build.max_batch_size,
        max_num_tokens=planned.build.max_num_tokens,
        rectify_interval=planned.sparse.rectify_interval,
        compute_capabilities=tuple(compute_capabilities),
        profiling_verbosity=profiling_verbosity,
    )

    def write(work: Path, index: int, weights: Mapping[str, torch.Tensor]) -> Path:
        path = work / segment_engine(index)
        build_segment(segments[index], weights, specs, options, path)
        return path

    return write


def _write_weights(work: Path, index: int, weights: Mapping[str, torch.Tensor]) -> Path:
    return _save(weights, work / segment_weights(index))


def _save(weights: Mapping[str, torch.Tensor], path: Path) -> Path:
    safetensors.torch.save_file(dict(weights), path)
    path.chmod(0o644)  # safetensors writes files that their owner alone can read
    return path


def _copies(
    planned: Plan, work: Path, index: int, weights: Mapping[str, torch.Tensor]
) -> list[Path]:
    """Segment ``index`` out of segment 1, whose weights are given.

    An engine is a hard link, since tensors are bound by their order; a file of weights has names.
    """
    files = []
    if "tensorrt_rtx" in planned.build.executors:
        files.append(work / segment_engine(index))
        files[-1].hardlink_to(work / segment_engine(1))
    if "torch" in planned.build.executors:
        segment = planned.network.segments()[index]
        names = [weight.name for weight in segment.weights]
        renamed = dict(zip(names, weights.values(), strict=True))
        files.append(_write_weights(work, index, renamed))
    return files


def _check_space(work: Path, planned: Plan) -> None:
    free = shutil.disk_usage(work).free
    if free < planned.output_bytes:
        raise EngineError(
            f"the engine takes about {planned.output_bytes / 1e9:.1f} GB and {work.parent} has "
            f"{free / 1e9:.1f} GB free; free some space, or build for one of --executors "
            f"{','.join(planned.build.executors)} alone"
        )


def _engine_config(planned: Plan, compute_capabilities: Sequence[str]) -> EngineConfig:
    flavour = version = plugin_hash = None
    capabilities: tuple[str, ...] = ()
    if "tensorrt_rtx" in planned.build.executors:
        from trt_resa.rtx import FLAVOUR, VERSION

        flavour, version, capabilities = FLAVOUR, VERSION, tuple(compute_capabilities)
    elif "tensorrt" in planned.build.executors:
        from trt_resa.trt import FLAVOUR, VERSION, plugin_library_sha256

        flavour, version, plugin_hash = FLAVOUR, VERSION, plugin_library_sha256()
        if torch.cuda.is_available():  # it builds for the GPU at hand
            capabilities = (".".join(map(str, torch.cuda.get_device_capability())),)
    library_version, library_hash = _kernel_library()
    return EngineConfig(
        version=FORMAT_VERSION,
        pretrained_config=planned.model,
        build_config=planned.build,
        sparse_attention_config=planned.sparse,
        build_info=BuildInfo(
            trt_resa_version=__version__,
            tensorrt_flavour=flavour,
            tensorrt_version=version,
            compute_capabilities=capabilities,
            kernel_library_version=library_version,
            kernel_library_sha256=library_hash,
            plugin_library_sha256=plugin_hash,
            checkpoint=planned.checkpoint.path.resolve().name,
            checkpoint_sha256=planned.checkpoint.sha256(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        ),
    )


def _kernel_library() -> tuple[str | None, str | None]:
    """Version and hash of this installation's kernels; None twice when it was made without CUDA."""
    try:
        library = load_library()
    except KernelLibraryError as error:
        _logger.info("the engine records no kernel library: %s", error)
        return None, None
    return library.version, library.sha256
