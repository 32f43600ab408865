"""The ``tensorrt_rtx`` executor: segments and attention kernels in turn, on one stream.

A sparse step, from token ids to sampled tokens, is one CUDA graph per batch bucket; so are dense
decoding and the dense pass of a window, and chunks of a prompt from the second of a shape on.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Iterator

import torch

from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import LOGITS, Phase
from trt_resa.engine_dir import EngineDirectory
from trt_resa.kernel_params import KERNELS
from trt_resa.kernels import load_library
from trt_resa.runtime.executors.activations import Activations
from trt_resa.runtime.executors.attention_kernels import AttentionKernels
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import ForwardShape, bucket_sizes
from trt_resa.runtime.executors.engine_loading import Linears, attention_weights, load_segments
from trt_resa.runtime.executors.forward_program import Launch
from trt_resa.runtime.executors.gpu_executor import GpuExecutor
from trt_resa.values import value_specs

#: Name of the parts of a forward that are not attention; the kernels have names of their own.
SEGMENTS = "segments"
ALL_PARTS = (SEGMENTS, *(params.kernel for params in KERNELS))


class RtxExecutor(GpuExecutor):
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
        super().__init__(engine, sparse, limits, device, graphs)
        self._library = load_library()
        self._segments = load_segments(engine, linears, device)
        specs = value_specs(engine.network, self.model, engine.config.build_config.dtype)
        rows, logit_rows = limits.max_num_tokens, limits.max_logit_rows
        inputs = self._inputs.tensors
        self._activations = Activations(engine.network, specs, inputs, rows, logit_rows, device)
        self._segments.bind(self._activations, self.buckets)
        norms = attention_weights(engine, device, self.dtype)
        self.allocate_cache(kv_cache)
        self._attention = AttentionKernels(
            self._library, self.model, sparse, self.cache, inputs, norms, rows
        )
        self._attention.reserve(self._possible_shapes())

    @property
    def logits(self) -> torch.Tensor:
        return self._activations.tensors[LOGITS]

    def prepare(self, shape: ForwardShape, captured: bool) -> None:
        self._segments.prepare(shape, self.stream)

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
            yield functools.partial(self.sample, shape.logit_rows)

    def _possible_shapes(self) -> Iterable[ForwardShape]:
        """Every combination that the size of a workspace can depend on."""
        for batch in bucket_sizes(self.limits.max_batch_size):
            yield ForwardShape(Phase.SPARSE, batch, batch, 0)
            for rows in {self.buckets.few_rows, self.limits.max_num_tokens, batch}:
                yield ForwardShape(Phase.DENSE, rows, batch, 0)
