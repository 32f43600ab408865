"""The attention of every layer: the kernels of a forward, with their parameters filled in once."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import (
    BLOCK_TABLE,
    CU_QUERY_LENS,
    KV_LENS,
    POSITION_IDS,
    Phase,
)
from trt_resa.kernel_params import (
    DenseAttentionParams,
    KernelParams,
    KvAppendParams,
    SparseStepParams,
)
from trt_resa.kernels import KernelLibrary
from trt_resa.model_config import ModelConfig
from trt_resa.rope import inverse_frequencies
from trt_resa.runtime.executors.buckets import ForwardShape
from trt_resa.runtime.executors.int4_linear import kernel_dtype


@dataclass(frozen=True)
class Cache:
    """Per layer, ``kv`` [num_blocks, 2, kv_heads, block_size, head_dim] and ``summary``
    [num_blocks, kv_heads, 2, head_dim], in the model's dtype."""

    kv: list[torch.Tensor]
    summary: list[torch.Tensor]

    @classmethod
    def allocate(
        cls,
        model: ModelConfig,
        block_size: int,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Cache:
        def per_layer(*block: int) -> list[torch.Tensor]:
            return [
                torch.empty(num_blocks, *block, dtype=dtype, device=device)
                for _ in range(model.num_layers)
            ]

        return cls(
            per_layer(2, model.num_kv_heads, block_size, model.head_dim),
            per_layer(model.num_kv_heads, 2, model.head_dim),
        )


class AttentionKernels:
    """Makes the launches of a layer in a forward of a given shape.

    ``inputs``: the contract's tensors by name. ``norms``: per layer the weights of ``q_norm`` and
    ``k_norm``, or nothing. One workspace and one set of counters, which last from launch to launch,
    serve all layers and shapes, which run one after another.
    """

    def __init__(
        self,
        library: KernelLibrary,
        model: ModelConfig,
        sparse: SparseAttentionConfig,
        cache: Cache,
        inputs: Mapping[str, torch.Tensor],
        norms: list[dict[str, torch.Tensor]],
        max_rows: int,
    ) -> None:
        self.cache = cache
        self._library, self._model, self._sparse = library, model, sparse
        self._inputs, self._norms = inputs, norms
        device, dtype = cache.kv[0].device, cache.kv[0].dtype
        self._dtype = kernel_dtype(dtype)
        inv_freq, self._rope_scale = inverse_frequencies(model.rope)
        self._inv_freq = inv_freq.to(device)
        self._q = torch.empty(max_rows, model.attention_size, dtype=dtype, device=device)
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self._counters = torch.empty(0, dtype=torch.uint8, device=device)

    def reserve(self, shapes: Iterable[ForwardShape]) -> None:
        """Allocate workspace and counters for all ``shapes`` and any selection; before the first
        launch."""
        workspace = counters = 0
        most = dataclasses.replace(self._sparse, keep_ratio=1.0)
        for shape, sparse in itertools.product(shapes, (self._sparse, most)):
            for params in self.launches(0, shape, 0, 0, sparse):
                if params.needs_workspace:
                    workspace = max(workspace, self._library.workspace_bytes(params))
                if params.needs_counters:
                    counters = max(counters, self._library.counter_bytes(params))
        device = self._q.device
        self._workspace = torch.empty(workspace, dtype=torch.uint8, device=device)
        self._counters = torch.zeros(counters, dtype=torch.uint8, device=device)

    def launches(
        self,
        layer: int,
        shape: ForwardShape,
        qkv: int,
        out: int,
        sparse: SparseAttentionConfig | None = None,
    ) -> list[KernelParams]:
        """Parameters of the kernels of one layer, in order; ``qkv`` and ``out`` are addresses.

        ``sparse``: what a selection follows; None: the executor's own settings.
        """
        model = self._model
        norms = self._norms[layer]
        common: dict[str, Any] = {
            "cu_query_lens": self._inputs[CU_QUERY_LENS].data_ptr(),
            "kv_lens": self._inputs[KV_LENS].data_ptr(),
            "block_table": self._inputs[BLOCK_TABLE].data_ptr(),
            "q": self._q.data_ptr(),
            "kv": self.cache.kv[layer].data_ptr(),
            "num_rows": shape.rows,
            "batch_size": shape.batch,
            "max_blocks_per_seq": self._inputs[BLOCK_TABLE].shape[1],
            "num_blocks": len(self.cache.kv[layer]),
            "q_heads": model.num_heads,
            "kv_heads": model.num_kv_heads,
            "head_dim": model.head_dim,
            "block_size": self._sparse.block_size,
            "dtype": self._dtype,
        }
        append = {
            "qkv": qkv,
            "position_ids": self._inputs[POSITION_IDS].data_ptr(),
            "inv_freq": self._inv_freq.data_ptr(),
            "q_norm": norms["q_norm"].data_ptr() if norms else None,
            "k_norm": norms["k_norm"].data_ptr() if norms else None,
            "summary": self.cache.summary[layer].data_ptr(),
            "rotary_dim": model.rope.rotary_dim,
            "rope_scale": self._rope_scale,
            "norm_eps": model.rms_norm_eps,
        }
        attend = {
            "out": out,
            "workspace": self._workspace.data_ptr(),
            "softmax_scale": 1 / math.sqrt(model.head_dim),
        }
        if shape.phase is Phase.DENSE:
            return [KvAppendParams(**common, **append), DenseAttentionParams(**common, **attend)]
        sparse = sparse or self._sparse
        step = SparseStepParams(
            **common,
            **append,
            **attend,
            counters=self._counters.data_ptr(),
            settled=1,  # all but qkv: counters since `reserve`, inputs before the first layer
            keep_ratio=sparse.keep_ratio,
            min_blocks=sparse.min_blocks,
            local_blocks=sparse.local_blocks,
            sink_blocks=sparse.sink_blocks,
            dense_below=sparse.dense_below,
        )
        return [step]
