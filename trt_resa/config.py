"""What a user can set: sparse attention, engine limits, KV cache. Frozen and validated.

The command line derives its flags from these fields (``trt_resa.cli_options``), so a default,
its range and its description stand here alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from trt_resa.validation import STRICT

RectifyMode = Literal["fused", "separate", "verify", "none", "dense"]
Dtype = Literal["auto", "float16", "bfloat16", "float32"]
Quantization = Literal["none", "w4a16"]
ExecutorName = Literal["tensorrt", "tensorrt_rtx", "torch"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SparseAttentionConfig:
    """Rectified Sparse Attention (arXiv 2506.04108): what a sparse step reads, when to repair."""

    algorithm: Annotated[Literal["resa"], Field(description="sparse attention algorithm")] = "resa"
    block_size: Annotated[
        Literal[16, 32, 64],
        Field(description="tokens per block: page of the KV cache and unit of selection"),
    ] = 16
    keep_ratio: Annotated[
        float, Field(gt=0, le=1, description="fraction of blocks a sparse step attends to")
    ] = 0.1
    min_blocks: Annotated[
        int, Field(ge=1, description="a sparse step attends to at least this many blocks")
    ] = 16
    local_blocks: Annotated[int, Field(ge=1, description="last blocks that are always in")] = 1
    sink_blocks: Annotated[int, Field(ge=0, description="first blocks that are always in")] = 0
    rectify_interval: Annotated[
        int, Field(ge=1, le=128, description="tokens in a window, after which a dense pass runs")
    ] = 32
    rectify_mode: Annotated[
        RectifyMode,
        Field(
            description="fused, separate and verify repair the cache; none never does; dense "
            "takes no sparse steps"
        ),
    ] = "fused"
    adaptive_window: Annotated[
        bool,
        Field(
            description="verify: take fewer tokens than rectify_interval in a window while the "
            "dense pass rejects many; off: always that many"
        ),
    ] = True
    dense_below: Annotated[
        int,
        Field(
            ge=0,
            description="sequences of at most this many tokens attend to everything, and need no "
            "rectification; 0: every sequence selects",
        ),
    ] = 8192

    drift_sample: Annotated[
        int,
        Field(
            ge=0,
            le=8,
            description="sparse steps per window that are compared with its dense pass, to report "
            "agreement and KL; each keeps a row of logits on the host meanwhile; 0: none",
        ),
    ] = 1

    @model_validator(mode="after")
    def _forced_blocks_fit(self) -> Self:
        forced = self.local_blocks + self.sink_blocks
        if forced > self.min_blocks:
            raise ValueError(
                f"local_blocks + sink_blocks = {forced} exceeds min_blocks = {self.min_blocks}; "
                "raise min_blocks or force fewer blocks"
            )
        return self

    @property
    def selection(self) -> tuple[float, int, int, int, int]:
        """What a selection depends on; the remaining settings only matter to the schedule."""
        return (
            self.keep_ratio,
            self.min_blocks,
            self.local_blocks,
            self.sink_blocks,
            self.dense_below,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BuildConfig:
    """Limits and format of an engine. ``None`` means: taken from the checkpoint."""

    dtype: Annotated[
        Dtype,
        Field(
            description="type of weights and activations; auto: the checkpoint's, float32 "
            "becoming float16; float32 is for the torch executor alone"
        ),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        Field(
            description="w4a16: INT4 weights, round to nearest, blocks of 128; AWQ and GPTQ "
            "checkpoints keep their own INT4 weights whatever this says"
        ),
    ] = "none"
    executors: Annotated[
        tuple[ExecutorName, ...],
        Field(
            min_length=1,
            description="what the engine directory is for: tensorrt_rtx writes an engine per "
            "segment, torch weights that run on a CPU or through plain PyTorch; tensorrt one "
            "engine with attention plugins (needs TensorRT and a GPU)",
        ),
    ] = ("tensorrt_rtx", "torch")
    max_batch_size: Annotated[int, Field(ge=1, le=256, description="sequences per step")] = 8
    max_seq_len: Annotated[
        int | None,
        Field(ge=1, le=1 << 20, description="tokens per sequence, prompt and output together"),
    ] = None
    max_input_len: Annotated[
        int | None, Field(ge=1, le=1 << 20, description="tokens per prompt")
    ] = None
    max_num_tokens: Annotated[
        int, Field(ge=1, le=1 << 16, description="tokens per dense pass: the prefill chunk")
    ] = 2048

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if len(set(self.executors)) != len(self.executors):
            raise ValueError(f"executors {self.executors} names one twice")
        flavours = [name for name in self.executors if name != "torch"]
        if len(flavours) > 1:
            raise ValueError(
                f"executors {','.join(self.executors)} asks for engines of two kinds; build an "
                "engine directory for each of them"
            )
        if self.dtype == "float32" and flavours:
            raise ValueError(
                "dtype float32 is for the torch executor alone; use float16 or bfloat16, or "
                "executors torch"
            )
        if self.max_batch_size > self.max_num_tokens:
            raise ValueError(
                f"max_batch_size {self.max_batch_size} exceeds max_num_tokens "
                f"{self.max_num_tokens}; raise max_num_tokens"
            )
        if self.max_seq_len and self.max_input_len and self.max_input_len > self.max_seq_len:
            raise ValueError(
                f"max_input_len {self.max_input_len} exceeds max_seq_len {self.max_seq_len}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KvCacheConfig:
    """Size of the KV cache, and what it keeps."""

    free_gpu_memory_fraction: Annotated[
        float,
        Field(gt=0, le=1, description="share of the memory left after loading, used for the cache"),
    ] = 0.9
    max_tokens: Annotated[
        int | None, Field(ge=1, description="upper bound of cached tokens over all sequences")
    ] = None
    enable_block_reuse: Annotated[
        bool,
        Field(
            description="keep full dense-exact blocks after their request, for later requests that "
            "begin with the same tokens; evicted, least recently used first, when room is needed"
        ),
    ] = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SchedulerConfig:
    """How requests share the forwards."""

    dense_rows_while_decoding: Annotated[
        int,
        Field(
            ge=1,
            description="rows of a dense pass, of prompts and windows together, while sequences "
            "generate: bounds the pause between two tokens (at least one window's rows; fewer far "
            "into a long prompt); while none does, a pass takes max_num_tokens",
        ),
    ] = 512
