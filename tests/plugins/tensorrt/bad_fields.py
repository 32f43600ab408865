"""Every way in which the plugin's fields can be wrong, and what the message must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.plugins.tensorrt.fields import GOOD, KINDS

Fields = list[tuple[str, Any]]


def without(name: str) -> Callable[[Fields], Fields]:
    return lambda fields: [field for field in fields if field[0] != name]


def with_value(name: str, value: Any) -> Callable[[Fields], Fields]:
    return lambda fields: [(key, value if key == name else old) for key, old in fields]


def with_added(name: str, value: Any) -> Callable[[Fields], Fields]:
    return lambda fields: [*fields, (name, value)]


def wrong_type(name: str) -> Callable[[Fields], Fields]:
    kind = np.int32 if KINDS[name] == "float32" else np.float32
    return with_value(name, np.array([GOOD[name]], dtype=kind))


OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "layer": (-1, 1024),
    "q_heads": (0, 27, 128),
    "kv_heads": (0, 3),
    "head_dim": (63, 80, 512),
    "block_size": (0, 17, 128),
    "rotary_dim": (-16, 8, 144),
    "rope_scale": (0.0, float("nan"), float("inf")),
    "norm_eps": (-1e-6, float("nan")),
    "softmax_scale": (0.0, -1.0, float("inf")),
    "keep_ratio": (0.0, 1.5, float("nan")),
    "min_blocks": (0, -5),
    "local_blocks": (0, 17),
    "sink_blocks": (-1, 16),
    "dense_below": (-1,),
}

CASES: dict[str, Callable[[Fields], Fields]] = (
    {f"missing {name}": without(name) for name in GOOD}
    | {f"wrong type of {name}": wrong_type(name) for name in GOOD}
    | {
        f"{name} = {value}": with_value(name, value)
        for name, values in OUT_OF_RANGE.items()
        for value in values
    }
    | {
        "unknown field": with_added("warp_size", 32),
        "given twice": with_added("layer", 1),
        "a field of engines": with_added("dense_workspace", np.array([1], dtype=np.int64)),
        "array instead of one": with_value("layer", np.array([0, 1], dtype=np.int32)),
        "double instead of float": with_value("keep_ratio", np.array([0.1])),
        "no fields": lambda fields: [],
    }
)


def expected_message(case: str) -> str:
    """A part of the reason that must be logged."""
    if case.startswith("missing "):
        return f"'{case.removeprefix('missing ')}' is missing"
    if case.startswith("wrong type of "):
        return f"'{case.removeprefix('wrong type of ')}' must be one"
    return {
        "unknown field": "'warp_size' is unknown",
        "given twice": "'layer' is given twice",
        "a field of engines": "'dense_workspace' is unknown",
        "array instead of one": "must be one int32; it is int32, length 2",
        "double instead of float": "'keep_ratio' must be one float32",
        "no fields": "'layer' is missing",
    }.get(case, "")
