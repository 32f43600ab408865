"""The ``tensorrt_rtx`` executor: segments and attention kernels in turn, on one stream.

A sparse step, from token ids to sampled tokens, is one CUDA graph per batch bucket; so are dense
decoding and the dense pass of a window. Prefill chunks are launched one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import LOGITS, Int32Array, Phase, Step, max_logit_rows
from trt_resa.engine_dir import EngineDirectory
from trt_resa.kernel_params import KERNELS
from trt_resa.kernels import load_library
from trt_resa.runtime.executors.activations import Activations
from trt_resa.runtime.executors.attention_kernels import AttentionKernels, Cache
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import Buckets, ForwardShape, bucket_sizes
from trt_resa.runtime.executors.engine_loading import Linears, attention_weights, load_segments
from trt_resa.runtime.executors.forward_program import ForwardProgram, Launch
from trt_resa.runtime.executors.greedy import greedy_tokens
from trt_resa.runtime.executors.step_inputs import StepInputs
from trt_resa.runtime.memory import cache_blocks
from trt_resa.values import value_specs

#: Name of the parts of a forward that are not attention; the kernels have names of their own.
SEGMENTS = "segments"
ALL_PARTS = (SEGMENTS, *(params.kernel for params in KERNELS))


class RtxExecutor:
    """Holds the engines, the cache of every layer, and a program per shape of forward.

    ``linears``: what runs the segments, engines of TensorRT-RTX or kernels (``engine_loading``).
    ``graphs`` False launches everything one by one, for comparison. Raises EngineError when the
    engines or the kernels cannot run on this machine, RequestError when no cache fits.
    """

    def __init__(
        self,
        engine: EngineDirectory,
        sparse: SparseAttentionConfig,
        kv_cache: KvCacheConfig,
        limits: Limits,
        device: torch.device,
        linears: Linears = "auto",
        graphs: bool = True,
    ) -> None:
        self.model = engine.config.pretrained_config
        self.device = device
        self.dtype: torch.dtype = getattr(torch, engine.config.build_config.dtype)
        self.sparse, self.limits, self._graphs = sparse, limits, graphs
        build = engine.config.build_config
        few = max_logit_rows(
            build.max_batch_size, engine.config.sparse_attention_config.rectify_interval
        )
        self.buckets = Buckets(limits, min(few, build.max_num_tokens, limits.max_num_tokens))
        self._library = load_library()
        self._segments = load_segments(engine, linears, device)
        self.stream = torch.cuda.Stream(device)
        self._inputs = StepInputs(limits, num_blocks(limits.max_seq_len, sparse.block_size), device)
        specs = value_specs(engine.network, self.model, build.dtype)
        rows, logit_rows = limits.max_num_tokens, limits.max_logit_rows
        inputs = self._inputs.tensors
        self._activations = Activations(engine.network, specs, inputs, rows, logit_rows, device)
        self._segments.bind(self._activations, self.buckets)
        norms = attention_weights(engine, device, self.dtype)
        size = sparse.block_size
        self.num_blocks = cache_blocks(self.model, size, limits, kv_cache, device, self.dtype)
        self.cache = Cache.allocate(self.model, size, self.num_blocks, self.dtype, device)
        self._attention = AttentionKernels(
            self._library, self.model, sparse, self.cache, inputs, norms, rows
        )
        self._attention.reserve(self._possible_shapes())
        self._programs: dict[ForwardShape, ForwardProgram] = {}
        self.graph_pool = torch.cuda.graph_pool_handle()
        self._submitted = 0

    @property
    def captures(self) -> int:
        """Graphs captured so far."""
        return sum(program.captures for program in self._programs.values())

    @torch.inference_mode()
    def forward(self, step: Step) -> torch.Tensor:
        """Float32 logits [R, vocab] on the host."""
        return self.submit(step).logits()

    @torch.inference_mode()
    def submit(self, step: Step) -> Submitted:
        """Enqueue a forward and return at once, unless its shape is new.

        A negative token id -1 - j stands for the token that the forward submitted before sampled
        from its logit row j. So the host can submit the next forward before it has read a token.
        """
        shape = self.buckets.shape_of(step)
        program = self.program(shape, step.sparse)
        self._inputs.upload(step, shape, self.stream)
        program.run()
        self._submitted += 1
        return Submitted(self, self._submitted, len(step.logit_rows))

    @torch.inference_mode()
    def program(
        self, shape: ForwardShape, sparse: SparseAttentionConfig | None = None
    ) -> ForwardProgram:
        """The program of a shape, made when it is first asked for.

        One for a selection other than the executor's own is launched one by one and not kept, so
        that requests with settings of their own cannot fill the memory with graphs.
        """
        own = sparse is None or sparse.selection == self.sparse.selection
        if own and shape in self._programs:
            return self._programs[shape]
        self._segments.prepare(shape, self.stream)
        launches = list(self.launches(shape, sparse=sparse))
        capture = own and self._graphs and self.buckets.captures(shape)
        program = ForwardProgram(launches, self.stream, self.graph_pool, capture)
        if own:
            self._programs[shape] = program
        return program

    def launches(
        self,
        shape: ForwardShape,
        parts: Container[str] = ALL_PARTS,
        sparse: SparseAttentionConfig | None = None,
    ) -> Iterator[Launch]:
        """What a forward of a shape enqueues, in order.

        ``parts``: ``SEGMENTS`` (with the gather of token ids and the sampling) and names of
        kernels; a benchmark times them apart.
        """
        address = self._activations.address
        if SEGMENTS in parts:
            yield functools.partial(self._inputs.gather_ids, shape.rows)
        for at, stage in enumerate(self._activations.stages):
            layer = at // 2
            if at % 2 == 0:
                if SEGMENTS in parts:
                    yield functools.partial(self._segments.enqueue, layer, shape, self.stream)
                continue
            qkv, out = address(stage.inputs[0]), address(stage.outputs[0])
            for params in self._attention.launches(layer, shape, qkv, out, sparse):
                if params.kernel in parts:
                    yield functools.partial(self._library.launch, params, self.stream.cuda_stream)
        if SEGMENTS in parts and shape.logit_rows:
            yield functools.partial(self._sample, shape.logit_rows)

    def _sample(self, count: int) -> None:
        self._inputs.tokens[:count].copy_(greedy_tokens(self._logits[:count]))

    @property
    def _logits(self) -> torch.Tensor:
        return self._activations.tensors[LOGITS]

    def _possible_shapes(self) -> Iterable[ForwardShape]:
        """Every combination that the size of a workspace can depend on."""
        for batch in bucket_sizes(self.limits.max_batch_size):
            yield ForwardShape(Phase.SPARSE, batch, batch, 0)
            for rows in {self.buckets.few_rows, self.limits.max_num_tokens, batch}:
                yield ForwardShape(Phase.DENSE, rows, batch, 0)


@dataclass(frozen=True)
class Submitted:
    """A forward under way. Its results are read before the next forward is submitted, or, for
    tokens that ``fetch`` has asked for, at any time."""

    executor: RtxExecutor
    number: int
    rows: int

    def logits(self) -> torch.Tensor:
        """Float32 [R, vocab] on the host; waits for the forward."""
        self._check()
        with torch.cuda.stream(self.executor.stream):
            return self.executor._logits[: self.rows].cpu()

    def tokens(self) -> FetchedTokens:
        """Enqueue the copy of the sampled tokens to the host."""
        self._check()
        return FetchedTokens(self.executor._inputs.tokens[: self.rows], self.executor.stream)

    def _check(self) -> None:
        if self.number != self.executor._submitted:
            raise RuntimeError("results of a forward are asked for before the next one only")


class FetchedTokens:
    """Sampled tokens int32 [R] on their way to the host."""

    def __init__(self, tokens: torch.Tensor, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self._host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._host.copy_(tokens, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(stream)

    def ready(self) -> bool:
        return self._done.query()

    def get(self) -> Int32Array:
        """Waits for the forward."""
        self._done.synchronize()
        return np.array(self._host.numpy())
