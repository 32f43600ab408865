"""The ``tensorrt`` executor: one engine of data-centre TensorRT, with attention as a plugin in it.

A sparse step, from token ids to sampled tokens, is one CUDA graph per batch bucket; so are dense
decoding and the dense pass of a window, and chunks of a prompt from the second of a shape on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import KV_POOL, LOGITS, PHASE, SUMMARY_POOL
from trt_resa.engine_dir import MODEL_ENGINE, EngineDirectory
from trt_resa.errors import ConfigError, EngineError, RequestError
from trt_resa.plugin_fields import FIELDS
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import ForwardShape
from trt_resa.runtime.executors.forward_program import Launch
from trt_resa.runtime.executors.gpu_executor import GpuExecutor
from trt_resa.runtime.executors.trt_decoder import TrtDecoder


class TrtExecutor(GpuExecutor):
    """Holds the engine, the cache of every layer, and a program per shape of forward.

    The selection is the engine's: its settings are fields of the plugin. ``gpu_weights_percent``:
    share of the weights that stays in GPU memory, from 0 to 1, of an engine built with
    --weight_streaming; below 1 every forward waits for its weights, and nothing is captured.
    ``graphs`` False launches everything one by one, for comparison. Raises EngineError when the
    engine or its plugin cannot run on this machine, ConfigError for settings that the engine does
    not have, RequestError when no cache fits.
    """

    fixed_selection = True

    def __init__(
        self,
        engine: EngineDirectory,
        sparse: SparseAttentionConfig,
        kv_cache: KvCacheConfig,
        limits: Limits,
        device: torch.device,
        gpu_weights_percent: float | None = None,
        graphs: bool = True,
    ) -> None:
        check_selection(engine, sparse)
        loaded = load_decoder_engine(engine, device)
        streamed = set_weight_budget(loaded, gpu_weights_percent, engine)
        # A forward that streams its weights cannot be captured.
        super().__init__(engine, sparse, limits, device, graphs and not streamed)

        def per_layer() -> torch.Tensor:
            return torch.zeros(self.model.num_layers, dtype=torch.int64, device=device)

        logits = torch.empty(
            limits.max_logit_rows, self.model.vocab_size, dtype=torch.float32, device=device
        )
        self._tensors = {
            **self._inputs.tensors,
            # Its extent says the phase, and TensorRT wants an address even where that is 0.
            PHASE: torch.zeros(1, dtype=torch.int8, device=device),
            KV_POOL: per_layer(),
            SUMMARY_POOL: per_layer(),
            LOGITS: logits,
        }
        file = engine.path / MODEL_ENGINE
        self._decoder = TrtDecoder(loaded, self._tensors, self.buckets, file)
        self.allocate_cache(kv_cache)
        for name, buffers in ((KV_POOL, self.cache.kv), (SUMMARY_POOL, self.cache.summary)):
            addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.int64)
            self._tensors[name].copy_(addresses)
        torch.cuda.synchronize(device)  # the forwards' stream waits for no other

    @property
    def logits(self) -> torch.Tensor:
        return self._tensors[LOGITS]

    def prepare(self, shape: ForwardShape, captured: bool) -> None:
        self._decoder.prepare(shape, captured, self.stream)

    def launches(
        self, shape: ForwardShape, *, sparse: SparseAttentionConfig | None = None
    ) -> Iterator[Launch]:
        """Raises RequestError for a selection other than the engine's."""
        if sparse is not None and sparse.selection != self.sparse.selection:
            raise RequestError(
                "executor 'tensorrt' takes the selection that its engine was built with; leave "
                "the settings of the selection out, or use executor 'torch'"
            )
        yield functools.partial(self._inputs.gather_ids, shape.rows)
        yield functools.partial(self._decoder.enqueue, shape, self.stream)
        if shape.logit_rows:
            yield functools.partial(self.sample, shape.logit_rows)


def check_selection(engine: EngineDirectory, sparse: SparseAttentionConfig) -> None:
    """Raise ConfigError when a setting that is a field of the plugin differs from the engine's."""
    built = engine.config.sparse_attention_config
    for name in (field.name for field in FIELDS if hasattr(built, field.name)):
        ours, theirs = getattr(sparse, name), getattr(built, name)
        if ours != theirs:
            raise ConfigError(
                f"{name} {ours} differs from the engine's {theirs}, which is fixed in its "
                f"attention plugins; build it again with --{name} {ours}, or use executor "
                "'tensorrt_rtx' or 'torch'"
            )


def load_decoder_engine(engine: EngineDirectory, device: torch.device) -> Any:
    """The directory's engine (``trt.ICudaEngine``) on ``device``.

    Raises EngineError when there is none, TensorRT or the plugin is missing, or it was built with
    another TensorRT, for another GPU or with another plugin library.
    """
    built_for = engine.config.build_config.executors
    if "tensorrt" not in built_for:
        raise EngineError(
            f"{engine.path} holds no engine for the executor tensorrt (it was built with "
            f"--executors {','.join(built_for)}); build it again with --executors tensorrt"
        )
    # Imported here, since that needs TensorRT and the check above does not.
    from trt_resa.trt import check_build, load_engine

    capability = torch.cuda.get_device_capability(device)
    check_build(engine.config.build_info, engine.path, capability)
    with torch.cuda.device(device):
        return load_engine(engine.path / MODEL_ENGINE)


def set_weight_budget(loaded: Any, share: float | None, engine: EngineDirectory) -> bool:
    """Let ``share`` of the weights stay in GPU memory; whether any are streamed then.

    Before the first context is made. None: as TensorRT does by itself, all of them.
    """
    if share is None:
        return False
    if not 0 <= share <= 1:
        raise ConfigError(f"gpu_weights_percent {share} must be from 0 to 1")
    total = int(loaded.streamable_weights_size)
    if total == 0:
        raise ConfigError(
            f"gpu_weights_percent {share} needs an engine built with --weight_streaming, and "
            f"{engine.path} was not; leave it out or build it again with that flag"
        )
    budget = int(total * share)
    try:
        loaded.weight_streaming_budget_v2 = budget
    except RuntimeError as error:
        raise EngineError(
            f"TensorRT could not keep {budget} bytes of weights in GPU memory ({error}); lower "
            f"gpu_weights_percent {share}"
        ) from None
    return budget < total
