"""The facts of a decoder that the network, the kernels and the runtime agree on.

The builder derives them from a checkpoint; the engine directory carries them; the runtime reads
nothing else about the model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from trt_resa.validation import STRICT

#: Head sizes and query heads per KV head that the kernels are compiled for.
SUPPORTED_HEAD_DIMS = (64, 96, 128, 256)
MAX_GROUP = 16


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RopeConfig:
    """Rotary position embedding, half-split as in Hugging Face.

    ``scaling`` none needs only ``theta``; linear and yarn use ``factor``; llama3 uses ``factor``,
    ``low_freq_factor`` and ``high_freq_factor``; llama3 and yarn use
    ``original_max_position_embeddings``. ``attention_factor`` None: yarn's own formula.
    """

    theta: Annotated[float, Field(gt=0)]
    rotary_dim: Annotated[int, Field(ge=16, multiple_of=16)]
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: Annotated[float, Field(ge=1)] = 1.0
    original_max_position_embeddings: Annotated[int, Field(ge=1)] | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @model_validator(mode="after")
    def _original_length_known(self) -> Self:
        if self.scaling in ("llama3", "yarn") and self.original_max_position_embeddings is None:
            raise ValueError(f"RoPE scaling {self.scaling} needs original_max_position_embeddings")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention and a gated MLP."""

    model_type: str
    vocab_size: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    intermediate_size: Annotated[int, Field(ge=1)]
    num_layers: Annotated[int, Field(ge=1, le=1024)]
    num_heads: Annotated[int, Field(ge=1)]
    num_kv_heads: Annotated[int, Field(ge=1)]
    head_dim: Annotated[int, Field(ge=1)]
    rms_norm_eps: Annotated[float, Field(gt=0)]
    max_position_embeddings: Annotated[int, Field(ge=1)]
    rope: RopeConfig
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _kernels_can_run_it(self) -> Self:
        if self.head_dim not in SUPPORTED_HEAD_DIMS:
            raise ValueError(
                f"head_dim {self.head_dim} is not supported; the kernels take "
                f"{', '.join(map(str, SUPPORTED_HEAD_DIMS))}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.group > MAX_GROUP:
            raise ValueError(
                f"{self.group} query heads per KV head are not supported; at most {MAX_GROUP} are"
            )
        if self.rope.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim {self.rope.rotary_dim} exceeds head_dim {self.head_dim}")
        return self

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_size(self) -> int:
        """Columns of a packed qkv row: query heads, then key heads, then value heads."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_size(self) -> int:
        """Columns of an attention output row."""
        return self.num_heads * self.head_dim

    @property
    def attention_context(self) -> int:
        """Tokens of context that a row attends to with as many products as its layers' linears."""
        linears = self.hidden_size * (
            self.qkv_size + self.attention_size + 3 * self.intermediate_size
        )
        return linears // (2 * self.attention_size)

    def kv_bytes_per_token(self, block_size: int, bytes_per_element: int) -> float:
        """Cache bytes per token over all layers, summaries included."""
        keys_and_values = 2.0 * self.num_kv_heads * self.head_dim
        return self.num_layers * keys_and_values * (1 + 1 / block_size) * bytes_per_element
