"""``trt-resa export-onnx``: a checkpoint as an ONNX model with attention plugin nodes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from trt_resa.builder.plan import plan
from trt_resa.cli_options import given, options_of
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.plugin_fields import FIELDS
from trt_resa.tables import format_bytes
from trt_resa.validation import parse

_BUILD_KEYS = ("dtype", "quantization", "max_seq_len")
#: The settings that the attention node carries; the schedule is the runtime's.
_SPARSE_KEYS = tuple(field.name for field in FIELDS)


@click.command(name="export-onnx")
@click.option(
    "--checkpoint_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face model directory with safetensors, a GGUF file, or a TensorRT-LLM checkpoint",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="the .onnx file to write; its weights go into a file of that name with .data behind",
)
@options_of(BuildConfig, only=_BUILD_KEYS)
@options_of(SparseAttentionConfig, only=_SPARSE_KEYS)
@click.option("--overwrite", is_flag=True, help="replace an existing file")
def export_onnx(checkpoint_dir: Path, output: Path, overwrite: bool, **flags: Any) -> None:
    """Write a checkpoint's decoder as ONNX, for trtexec, polygraphy and Netron.

    Each attention is a trt_resa::ReSAAttention node, which needs the TensorRT plugin. INT4 weights
    stay INT4: DequantizeLinear nodes with block scales.
    """
    try:
        from trt_resa.builder import onnx_export
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ConfigError(
            "export-onnx needs the package onnx, which is not installed; install it with pip "
            "install 'trt-resa[onnx]'"
        ) from None
    onnx_export.check_output(output, overwrite)
    # Only the torch executor takes fp32; the limits of an engine are trtexec's to set.
    build = parse(BuildConfig, {**given(BuildConfig, flags), "executors": ("torch",)}, "options")
    sparse = parse(SparseAttentionConfig, given(SparseAttentionConfig, flags), "options")
    written = onnx_export.export_onnx(
        plan(checkpoint_dir, build, sparse), output, overwrite=overwrite
    )
    data = written.with_name(written.name + ".data")
    path = shlex.quote(str(output))
    click.echo(f"Wrote {path} and {format_bytes(data.stat().st_size)} of weights in {path}.data")
