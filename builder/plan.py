"""What a build decides before it reads a weight; a dry run ends here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trt_resa.builder.checkpoint import Checkpoint, open_checkpoint
from trt_resa.builder.families import Description, describe
from trt_resa.builder.weights import resolve_dtype
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.model_config import ModelConfig
from trt_resa.network import Network
from trt_resa.validation import replace
from trt_resa.values import ValueSpec, node_weight_bytes, value_specs

#: Bytes of a segment's engine beside its weights, where it is largest: layers and headers.
_ENGINE_OVERHEAD = 1_400_000


@dataclass(frozen=True)
class Plan:
    """A checkpoint, its network, and the configurations with every limit a number."""

    checkpoint: Checkpoint
    description: Description
    build: BuildConfig
    sparse: SparseAttentionConfig

    @property
    def model(self) -> ModelConfig:
        return self.checkpoint.model

    @property
    def network(self) -> Network:
        return self.description.network

    @cached_property
    def specs(self) -> dict[str, ValueSpec]:
        return value_specs(self.network, self.model, self.build.dtype)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as one executor holds them."""
        return sum(map(node_weight_bytes, self.network.nodes))

    @property
    def output_bytes(self) -> int:
        """Estimated size of the engine directory."""
        engines = len(self.network.attention_nodes) + 1
        overhead = _ENGINE_OVERHEAD * engines if "tensorrt_rtx" in self.build.executors else 0
        return self.weight_bytes * len(self.build.executors) + overhead


def check_options(build: BuildConfig, sparse: SparseAttentionConfig) -> None:
    """Raise ConfigError when the configurations contradict each other; needs no checkpoint."""
    rectifies = sparse.rectify_mode in ("fused", "separate", "verify")
    if rectifies and sparse.rectify_interval > build.max_num_tokens:
        raise ConfigError(
            f"rectify_interval {sparse.rectify_interval} exceeds max_num_tokens "
            f"{build.max_num_tokens}, but a window is repaired in one dense pass; raise "
            "--max_num_tokens or lower --rectify_interval"
        )


def plan(checkpoint_dir: Path | str, build: BuildConfig, sparse: SparseAttentionConfig) -> Plan:
    """``plan_checkpoint`` of the checkpoint in a directory or file.

    Reads headers alone. Raises CheckpointError, or ConfigError when a limit does not fit the model.
    """
    check_options(build, sparse)
    return plan_checkpoint(open_checkpoint(checkpoint_dir), build, sparse)


def plan_checkpoint(
    checkpoint: Checkpoint, build: BuildConfig, sparse: SparseAttentionConfig
) -> Plan:
    """Describe the network of a checkpoint, and replace ``None`` and ``auto`` by its facts."""
    check_options(build, sparse)
    positions = checkpoint.model.max_position_embeddings
    length = build.max_seq_len or positions
    if length > positions:
        raise ConfigError(
            f"max_seq_len {length} exceeds the {positions} positions that {checkpoint.path} is "
            f"made for (max_position_embeddings); give --max_seq_len {positions} or less"
        )
    facts = {
        "dtype": resolve_dtype(checkpoint, build),
        "max_seq_len": length,
        "max_input_len": build.max_input_len or length,
    }
    resolved = replace(build, facts, "build options")
    return Plan(checkpoint, describe(checkpoint, resolved), resolved, sparse)
