"""``trt-resa triton-repo``: a Triton model repository for an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from trt_resa.cli_options import SPARSE_SECTION, given, options_of, read_sparse_section
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.runtime.executors.choose import ExecutorChoice
from trt_resa.runtime.serving.parameters import KV_CACHE_PREFIX, LLM_PARAMETERS
from trt_resa.runtime.serving.triton_repo import write_repository


@click.command(name="triton-repo")
@click.option(
    "--engine_dir", type=click.Path(path_type=Path), required=True, help="engine directory"
)
@click.option(
    "--output_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="model repository; made if it does not exist, other models in it are left alone",
)
@click.option("--model_name", default="trt_resa", show_default=True, help="name clients ask for")
@click.option("--copy_engine", is_flag=True, help="put a copy of the engine into the repository")
@click.option("--overwrite", is_flag=True, help="replace the model of this name")
@click.option(
    "--executor", type=click.Choice(get_args(ExecutorChoice)), help=LLM_PARAMETERS["executor"]
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help=LLM_PARAMETERS["device"])
@click.option("--max_batch_size", type=int, help=LLM_PARAMETERS["max_batch_size"])
@click.option("--max_seq_len", type=int, help=LLM_PARAMETERS["max_seq_len"])
@click.option("--max_num_tokens", type=int, help=LLM_PARAMETERS["max_num_tokens"])
@click.option("--gpu_weights_percent", type=float, help=LLM_PARAMETERS["gpu_weights_percent"])
@click.option("--config", type=click.Path(path_type=Path), help=f"YAML with {SPARSE_SECTION}")
@options_of(KvCacheConfig, prefix=KV_CACHE_PREFIX)
@options_of(SchedulerConfig, SparseAttentionConfig)
def triton_repo(
    engine_dir: Path,
    output_dir: Path,
    model_name: str,
    copy_engine: bool,
    overwrite: bool,
    config: Path | None,
    **flags: Any,
) -> None:
    """Write a Triton model repository that serves an engine."""
    settings = {name: flags[name] for name in LLM_PARAMETERS if flags[name] is not None}
    cache = given(KvCacheConfig, flags, KV_CACHE_PREFIX)
    settings |= {KV_CACHE_PREFIX + name: value for name, value in cache.items()}
    settings |= given(SchedulerConfig, flags)
    settings |= read_sparse_section(config) | given(SparseAttentionConfig, flags)
    model = write_repository(
        engine_dir,
        output_dir,
        model_name,
        settings,
        copy_engine=copy_engine,
        overwrite=overwrite,
    )
    click.echo(f"{model}: start it with tritonserver --model-repository={output_dir.absolute()}")
