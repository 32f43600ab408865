"""``trt-resa generate``: text from an engine directory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, get_args

import click

from trt_resa.cli_options import given, options_of, read_sparse_section
from trt_resa.config import KvCacheConfig, RectifyMode, SparseAttentionConfig
from trt_resa.errors import ConfigError, RequestError
from trt_resa.runtime.executors.choose import ExecutorChoice
from trt_resa.runtime.executors.engine_loading import Linears
from trt_resa.runtime.llm import LLM
from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.stats import total
from trt_resa.sampling_params import SamplingParams
from trt_resa.validation import parse

KV_CACHE_PREFIX = "kv_cache_"


@click.command()
@click.option(
    "--engine_dir", type=click.Path(path_type=Path), required=True, help="engine directory"
)
@click.option("--prompt", "prompts", multiple=True, help="text to continue; may be repeated")
@click.option(
    "--prompt_file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="file with one prompt (UTF-8); may be repeated",
)
@click.option("--chat", is_flag=True, help="apply the model's chat template to each prompt")
@click.option(
    "--executor",
    type=click.Choice(get_args(ExecutorChoice)),
    default="auto",
    show_default=True,
    help="what runs the forwards; auto: the engines where there are a GPU and engines",
)
@click.option(
    "--linears",
    type=click.Choice(get_args(Linears)),
    default="auto",
    show_default=True,
    help="with tensorrt_rtx: what runs the segments; auto: what is faster on the GPU",
)
@click.option(
    "--gpu_weights_percent",
    type=float,
    help="with tensorrt: share of the weights in GPU memory, 0 to 1 [default: all]",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--max_batch_size", type=int, help="sequences at once [default: the engine's]")
@click.option("--max_seq_len", type=int, help="tokens per sequence [default: the engine's]")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with sparse_attention_config")
@click.option(
    "--stats", is_flag=True, help="print speed, blocks attended, dense passes, drafts, drift"
)
@click.option(
    "--compare",
    type=click.Choice(["dense"]),
    help="generate again without sparse steps and print where the outputs part",
)
@options_of(SamplingParams, SparseAttentionConfig)
@options_of(KvCacheConfig, prefix=KV_CACHE_PREFIX)
def generate(
    engine_dir: Path,
    prompts: tuple[str, ...],
    files: tuple[Path, ...],
    chat: bool,
    executor: ExecutorChoice,
    linears: Linears,
    gpu_weights_percent: float | None,
    device: str,
    max_batch_size: int | None,
    max_seq_len: int | None,
    config: Path | None,
    stats: bool,
    compare: RectifyMode | None,
    **flags: Any,
) -> None:
    """Generate text with Rectified Sparse Attention."""
    params = parse(SamplingParams, given(SamplingParams, flags), "sampling flags")
    texts = [*prompts, *(_read(file) for file in files)]
    if not texts:
        raise ConfigError("no prompt was given; use --prompt TEXT or --prompt_file FILE")
    with LLM(
        engine_dir,
        executor=executor,
        linears=linears,
        gpu_weights_percent=gpu_weights_percent,
        device=device,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        kv_cache_config=given(KvCacheConfig, flags, KV_CACHE_PREFIX),
        sparse_attention_config=_sparse_changes(config, flags),
    ) as llm:
        if chat:
            texts = [_chat(llm, text) for text in texts]
        start = time.perf_counter()
        results, first = _run(llm, texts, params)
        end = time.perf_counter()
        if stats:
            _print_stats(results, end - start, None if first is None else end - first)
        if compare:
            others = llm.generate(texts, params, rectify_mode=compare)
            for result, dense in zip(results, others, strict=True):
                for output, other in zip(result.outputs, dense.outputs, strict=True):
                    _note(_comparison(output.token_ids, other.token_ids, compare))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt_file {file} cannot be read: {error}") from None


def _sparse_changes(config: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    return {**read_sparse_section(config), **given(SparseAttentionConfig, flags)}


def _chat(llm: LLM, text: str) -> str:
    if llm.tokenizer is None:
        raise RequestError("--chat needs a tokenizer, and the engine directory holds none")
    return llm.tokenizer.chat(text)


def _run(
    llm: LLM, texts: list[str], params: SamplingParams
) -> tuple[list[RequestOutput], float | None]:
    """Print a single completion as it comes, several when they are done.

    Also returns when the first token of a single completion came.
    """
    if len(texts) > 1 or params.n > 1:
        results = llm.generate(texts, params)
        for number, result in enumerate(results):
            for output in result.outputs:
                click.echo(f"[{number}.{output.index}] {output.text}")
        return results, None
    handle, first = llm.generate_async(texts[0], params, streaming=True), None
    for result in handle:
        first = first or time.perf_counter()
        click.echo(result.outputs[0].text_diff, nl=False)
        sys.stdout.flush()
    click.echo()
    return [handle.result()], first


def _print_stats(
    results: list[RequestOutput], seconds: float, decode_seconds: float | None
) -> None:
    """``decode_seconds``: from the first token of a single completion to the last."""
    outputs = [output for result in results for output in result.outputs]
    tokens = sum(len(output.token_ids) for output in outputs)
    prompt = sum(len(result.prompt_token_ids) for result in results)
    speed = f"{tokens / seconds:.1f} tokens/s with prefill"
    if decode_seconds and tokens > 1:
        speed = (
            f"first token after {seconds - decode_seconds:.2f} s, then "
            f"{(tokens - 1) / decode_seconds:.1f} tokens/s"
        )
    _note(f"{prompt} prompt tokens, {tokens} new tokens in {seconds:.2f} s: {speed}")
    counts = total(output.stats for output in outputs)
    _note(
        f"{counts.sparse_steps} sparse steps attended to {counts.attended_share:.1%} of the "
        f"blocks, {counts.dense_passes} dense passes of {counts.dense_rows} tokens: "
        f"{counts.read_share:.1%} of the cache reads of dense decoding in all"
    )
    if counts.drafts:
        _note(
            f"{counts.drafts_accepted} of {counts.drafts} drafts accepted "
            f"({counts.drafts_accepted / counts.drafts:.1%}), "
            f"{counts.drafts_accepted / counts.verifications:.1f} of "
            f"{counts.drafts / counts.verifications:.1f} per verification"
        )
    if counts.drift_rows:
        _note(
            f"of {counts.drift_rows} sampled sparse steps "
            f"{counts.drift_agreed / counts.drift_rows:.1%} agree with dense; KL to dense "
            f"{counts.drift_kl / counts.drift_rows:.4f} nats"
        )


def _comparison(tokens: list[int], dense: list[int], mode: str) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(tokens, dense, strict=False)) if a != b),
        min(len(tokens), len(dense)),
    )
    if same == len(tokens) == len(dense):
        return f"identical to {mode} in all {same} tokens"
    return f"first difference from {mode} at token {same} of {len(dense)}"


def _note(text: str) -> None:
    click.echo(f"[trt-resa] {text}", err=True)
