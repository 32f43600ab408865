"""``LLM``: load an engine directory and generate."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from typing_extensions import Self

from trt_resa.config import KvCacheConfig, RectifyMode, SchedulerConfig, SparseAttentionConfig
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError, RequestError
from trt_resa.runtime.engine_loop import EngineLoop
from trt_resa.runtime.executors.choose import ExecutorChoice, make_executor
from trt_resa.runtime.executors.engine_loading import Linears
from trt_resa.runtime.llm_config import (
    given_config,
    llm_device,
    llm_limits,
    llm_sparse_config,
)
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.request_config import SparseChanges, request_config
from trt_resa.runtime.request_handle import RequestHandle
from trt_resa.runtime.sequence import Sequence
from trt_resa.runtime.session import Session
from trt_resa.runtime.tokenizer import TextTokenizer
from trt_resa.sampling_params import SamplingParams

#: A text, or the token ids of one.
Prompt = str | SequenceOf[int]
#: Keys of a prompt's blocks that are made at a stretch, in some 50 us.
KEYS_AT_ONCE = 64


class LLM:
    """A model ready to generate.

    ``model``: an engine directory made by ``trt-resa build-engine``. The limits default to those of
    the engine and can only be lowered. ``sparse_attention_config``: changes to the engine's own, as
    a SparseAttentionConfig or a mapping of the keys that differ; a request can change them again.
    ``device``: "cpu", "cuda" or "auto". ``dtype`` of the torch executor: float32 on a CPU, the
    engine's on a GPU, unless given. ``linears`` of the executor tensorrt_rtx: "tensorrt" for the
    engines, "kernels" for the kernel library and PyTorch, "auto" for what is faster on the GPU.
    ``gpu_weights_percent`` of the executor tensorrt: share of the weights, from 0 to 1, that stays
    in GPU memory, of an engine built with --weight_streaming.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        executor: ExecutorChoice = "auto",
        linears: Linears = "auto",
        kv_cache_config: KvCacheConfig | Mapping[str, Any] | None = None,
        scheduler_config: SchedulerConfig | Mapping[str, Any] | None = None,
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        max_num_tokens: int | None = None,
        sparse_attention_config: SparseChanges | None = None,
        device: str = "auto",
        dtype: str | None = None,
        gpu_weights_percent: float | None = None,
    ) -> None:
        engine = EngineDirectory(model)
        self.sparse_attention_config = llm_sparse_config(engine.config, sparse_attention_config)
        self.limits = llm_limits(engine.config, max_batch_size, max_seq_len, max_num_tokens)
        if self.sparse_attention_config.rectify_interval > self.limits.max_num_tokens:
            raise ConfigError(
                f"rectify_interval {self.sparse_attention_config.rectify_interval} exceeds "
                f"max_num_tokens {self.limits.max_num_tokens}; lower it"
            )
        self.tokenizer = TextTokenizer.load(engine.path)
        self.model_config = engine.config.pretrained_config
        self.device = llm_device(device)
        kv_cache = given_config(KvCacheConfig, kv_cache_config, "kv_cache_config")
        self._executor = make_executor(
            executor,
            engine,
            self.sparse_attention_config,
            kv_cache,
            self.limits,
            self.device,
            dtype,
            linears,
            gpu_weights_percent,
        )
        self._session = Session(
            self._executor,
            self.limits,
            self.sparse_attention_config,
            kv_cache,
            given_config(SchedulerConfig, scheduler_config, "scheduler_config"),
        )
        self._reuses = kv_cache.enable_block_reuse
        self._loop = EngineLoop(self._session)
        self._ids = itertools.count()

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; it comes first
        self,
        prompts: str | SequenceOf[int],
        sampling_params: SamplingParams | None = None,
        *,
        rectify_mode: RectifyMode | None = None,
        sparse_attention_config: SparseChanges | None = None,
    ) -> RequestOutput: ...
    @overload
    def generate(
        self,
        prompts: SequenceOf[str] | SequenceOf[SequenceOf[int]],
        sampling_params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        *,
        rectify_mode: RectifyMode | None = None,
        sparse_attention_config: SparseChanges | None = None,
    ) -> list[RequestOutput]: ...
    def generate(
        self,
        prompts: Prompt | SequenceOf[Prompt],
        sampling_params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        *,
        rectify_mode: RectifyMode | None = None,
        sparse_attention_config: SparseChanges | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Generate for one prompt or several, and wait.

        One prompt (a text, or token ids) gives one output; a list gives a list in the same order.
        ``sparse_attention_config`` changes the LLM's own for these requests, as a whole or by the
        keys that differ; ``rectify_mode`` is short for that key. Raises RequestError before
        anything runs when any request can never be served.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        many: list[Any] = [prompts] if single else list(prompts)
        if isinstance(sampling_params, SequenceOf):
            params = list(sampling_params)
        else:
            params = [sampling_params or SamplingParams()] * len(many)
        if len(params) != len(many):
            raise RequestError(
                f"{len(many)} prompts came with {len(params)} sampling_params; give one for all or "
                "one for each"
            )
        sparse = self._sparse(sparse_attention_config, rectify_mode)
        handles = [
            self._handle(prompt, param, False, sparse)
            for prompt, param in zip(many, params, strict=True)
        ]
        try:
            for handle in handles:
                self._loop.submit(handle)
            results = [handle.result() for handle in handles]
        except BaseException:  # an interrupt too: nobody waits for these any more
            for handle in handles:
                handle.cancel()
            raise
        return results[0] if single else results

    def generate_async(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
        rectify_mode: RectifyMode | None = None,
        sparse_attention_config: SparseChanges | None = None,
        timeout: float | None = None,
    ) -> RequestHandle:
        """Start one request and return at once; see RequestHandle for how to follow it.

        ``timeout``: seconds from now, time in the queue included, after which the request ends with
        finish_reason "timeout" and what it has until then. Otherwise as ``generate``.
        """
        if timeout is not None and not timeout > 0:
            raise RequestError(f"timeout {timeout} must be more than 0 seconds, or None for none")
        sparse = self._sparse(sparse_attention_config, rectify_mode)
        handle = self._handle(prompt, sampling_params or SamplingParams(), streaming, sparse)
        self._loop.submit(handle, timeout)
        return handle

    def metrics(self) -> Metrics:
        """Counters and gauges of the whole LLM; cheap, and callable from any thread."""
        return self._loop.metrics()

    def shutdown(self) -> None:
        """Finish the requests under way and stop."""
        self._loop.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _sparse(
        self, changes: SparseChanges | None, mode: RectifyMode | None
    ) -> SparseAttentionConfig:
        own = self.sparse_attention_config
        fixed = self._executor.fixed_selection
        return request_config(own, changes, mode, self._session.max_interval, fixed)

    def _handle(
        self, prompt: Prompt, params: SamplingParams, streaming: bool, sparse: SparseAttentionConfig
    ) -> RequestHandle:
        text = prompt if isinstance(prompt, str) else None
        ids = self._token_ids(prompt)
        self._check(ids, params)
        request_id = next(self._ids)
        backend = None if self.tokenizer is None else self.tokenizer.backend
        sequences = [
            Sequence(
                request_id,
                index,
                ids,
                params,
                sparse,
                self.limits.max_seq_len,
                self.model_config.eos_token_ids,
                backend,
            )
            for index in range(params.n)
        ]
        whole = len(ids) // self.sparse_attention_config.block_size
        if self._reuses and whole:
            # Here, and not by the engine's thread, which everyone waits for.
            for sequence in sequences:
                for index in (*range(KEYS_AT_ONCE - 1, whole, KEYS_AT_ONCE), whole - 1):
                    sequence.block_key(index)
                    time.sleep(0)  # lets the engine's thread have the interpreter
        return RequestHandle(request_id, text, ids, sequences, streaming, self._loop.cancel)

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            try:
                return list(map(operator.index, prompt))
            except TypeError:
                raise RequestError("token ids are integers, and one of these is not") from None
        if self.tokenizer is None:
            raise RequestError(
                "the engine directory holds no tokenizer; give token ids instead of a text"
            )
        return self.tokenizer.encode(prompt)

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        limits, vocab = self.limits, self.model_config.vocab_size
        if not ids:
            raise RequestError("the prompt is empty; give at least one token")
        for token in (min(ids), max(ids), *params.bad_token_ids):
            if not 0 <= token < vocab:
                raise RequestError(f"token id {token} is outside the vocabulary 0..{vocab - 1}")
        longest = min(limits.max_input_len, limits.max_seq_len - 1)
        if len(ids) > longest:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; this engine takes at most {longest} "
                f"(max_input_len {limits.max_input_len}, max_seq_len {limits.max_seq_len}); "
                "shorten it or build the engine with larger limits"
            )
        needed = self._session.blocks_for(min(len(ids) + params.max_tokens, limits.max_seq_len))
        if needed > self._session.pool_size:
            raise RequestError(
                f"prompt and max_tokens need {needed} blocks of the KV cache, which has "
                f"{self._session.pool_size}; lower max_tokens or give the cache more memory"
            )
        if params.stop and self.tokenizer is None:
            raise RequestError(
                "stop strings need a tokenizer, and the engine directory holds none; use "
                "stop_token_ids"
            )
