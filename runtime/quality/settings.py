"""Which settings are put side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from trt_resa.config import RectifyMode, SparseAttentionConfig
from trt_resa.errors import ConfigError
from trt_resa.validation import replace

MODES: tuple[str, ...] = ("dense", "none", "separate", "fused", "verify")
SWEPT = {
    "keep_ratio": float,
    "rectify_interval": int,
    "min_blocks": int,
    "local_blocks": int,
    "sink_blocks": int,
    "dense_below": int,
}


@dataclass(frozen=True)
class Variant:
    """``changed``: the swept key, None for a mode with the settings as they are."""

    name: str
    sparse: SparseAttentionConfig
    changed: str | None = None


def parse_modes(text: str) -> tuple[str, ...]:
    """``a,b``; dense, which everything is compared with, is in whether named or not."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    for mode in named:
        if mode not in get_args(RectifyMode):
            raise ConfigError(f"mode '{mode}' is not one of {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in {*named, "dense"})


def parse_sweep(text: str) -> tuple[str, tuple[Any, ...]]:
    """``keep_ratio=0.05,0.1`` as its key and values."""
    key, _, values = text.partition("=")
    if key not in SWEPT:
        raise ConfigError(f"--sweep {text}: '{key}' is not one of {', '.join(SWEPT)}")
    try:
        found = tuple(SWEPT[key](value) for value in values.split(","))
    except ValueError:
        raise ConfigError(
            f"--sweep {text}: give numbers after the key, such as keep_ratio=0.05,0.1"
        ) from None
    return key, found


def variants(
    base: SparseAttentionConfig,
    modes: Sequence[str],
    sweeps: Sequence[tuple[str, Sequence[Any]]],
    swept_modes: Sequence[str],
) -> list[Variant]:
    """Every mode with ``base``, then ``swept_modes`` with one key changed at a time."""
    found = [Variant(mode, replace(base, {"rectify_mode": mode}, f"mode {mode}")) for mode in modes]
    for key, values in sweeps:
        for mode in swept_modes:
            for value in values:
                if value != getattr(base, key):
                    changes = {"rectify_mode": mode, key: value}
                    sparse = replace(base, changes, f"--sweep {key}={value}")
                    found.append(Variant(f"{mode} {key}={value}", sparse, key))
    return found
