"""Builds the engine of one segment with TensorRT-RTX, ahead of time and without a GPU.

An engine has two optimisation profiles over T, its rows, and R, the rows whose logits are wanted:

=======  ==========================  ============  =================================
profile  T (least, best, most)       R             serves
=======  ==========================  ============  =================================
0        1, B, W                     0, B, W       sparse steps, windows
1        1, min(512, N), N           0, B, W       prefill chunks, larger passes
=======  ==========================  ============  =================================

B is max_batch_size, N max_num_tokens, and W ``contract.max_logit_rows``, the larger of B and
rectify_interval (at most N). A rectification or verification of one window has at most W rows; at
so few rows the time goes to reading the weights, as in a decode step, so it shares profile 0: a
forward takes profile 0 when its T is at most W. Several windows in one dense pass may have more
rows, and take profile 1.

R may be 0: a prefill chunk that is not the last, or a rectification whose logits nobody wants.
The last segment then computes nothing that is read, and the runtime should skip it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from trt_resa.builder.trt_build import add_profiles, failure, row_ranges, write_engine
from trt_resa.builder.trt_layers import Layers
from trt_resa.errors import EngineError
from trt_resa.network import Segment
from trt_resa.rtx import LOG, trt
from trt_resa.values import ValueSpec

_WAY_OUT = "build with --executors torch to run without it"


@dataclass(frozen=True, kw_only=True)
class RtxOptions:
    """How to build: limits of the profiles, GPUs to target, what the engine inspector can list."""

    max_batch_size: int
    max_num_tokens: int
    rectify_interval: int
    compute_capabilities: tuple[str, ...]
    profiling_verbosity: str = "detailed"

    def profiles(self) -> tuple[dict[str, tuple[int, int, int]], ...]:
        """(minimum, optimum, maximum) of T and of R, per profile."""
        return row_ranges(self.max_batch_size, self.max_num_tokens, self.rectify_interval)


def build_segment(
    segment: Segment,
    weights: Mapping[str, torch.Tensor],
    specs: Mapping[str, ValueSpec],
    options: RtxOptions,
    path: Path,
) -> None:
    """Write the engine of ``segment`` to ``path``.

    ``weights`` by the names of the network, in the types it says; ``specs`` of every value that the
    segment reads. Raises EngineError with TensorRT's own words when it builds none.
    """
    LOG.take_errors()  # those of an earlier failure
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    layers = Layers(trt, network, weights)
    try:
        layers.add_inputs(specs[name] for name in segment.inputs)
        layers.add_nodes(segment.nodes)
        layers.mark_outputs(segment.outputs)
    except (AttributeError, TypeError):  # a refused layer is None in the bindings
        reason = LOG.take_errors()
        if not reason:
            raise
        raise failure(trt, path, reason, _WAY_OUT) from None
    config = _config(builder, segment, specs, options)
    write_engine(trt, LOG, builder, network, config, path, _WAY_OUT)


def _config(
    builder: trt.Builder, segment: Segment, specs: Mapping[str, ValueSpec], options: RtxOptions
) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.profiling_verbosity = getattr(
        trt.ProfilingVerbosity, options.profiling_verbosity.upper()
    )
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, capability in enumerate(options.compute_capabilities):
        target = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if target is None or not config.set_compute_capability(target, index):
            raise EngineError(
                f"TensorRT-RTX {trt.__version__} cannot target compute capability {capability}; "
                "leave it out of --compute_capabilities"
            )
    add_profiles(builder, config, (specs[name] for name in segment.inputs), options.profiles())
    return config
