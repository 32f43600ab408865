"""What TensorRT's plugin registry does with the library; one scenario a process.

``python -m tests.plugins.tensorrt.registry_scenarios NAME LIBRARY`` prints what came of it as JSON
in its last line. The registry is the one in TensorRT-RTX, the same code as in TensorRT.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_rtx as trt

from tests.plugins.tensorrt.fields import GOOD, KINDS

IDENTITY = ("ReSAAttention", "1", "trt_resa")

Field = tuple[str, Any]


class Logger(trt.ILogger):
    """Keeps the plugin's own messages and whatever the registry calls an error."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        # Without a GPU, TensorRT reports that with every error of its own.
        if severity <= trt.ILogger.ERROR and "catchCudaError" not in message:
            self.errors.append(message)

    def take(self) -> list[str]:
        taken, self.errors = self.errors, []
        return taken


LOGGER = Logger()
BUILDER = trt.Builder(LOGGER)  # the registry logs to the logger of the first builder
REGISTRY = trt.get_plugin_registry()


def registered() -> bool:
    """Whether the registry lists the plugin."""
    return any(
        (creator.name, creator.plugin_version, creator.plugin_namespace) == IDENTITY
        for creator in REGISTRY.all_creators
        if hasattr(creator, "plugin_version")
    )


def is_mapped(path: str) -> bool:
    return path in Path("/proc/self/maps").read_text()


def field_of(name: str, value: Any) -> tuple[trt.PluginField, Any]:
    """A field, and the memory behind it: the field does not keep it alive."""
    if not isinstance(value, np.ndarray):
        kind = KINDS.get(name, "int32")
        value = np.array([value], dtype=np.float32 if kind == "float32" else np.int32)
    types = {
        np.dtype(np.float32): trt.PluginFieldType.FLOAT32,
        np.dtype(np.float64): trt.PluginFieldType.FLOAT64,
        np.dtype(np.int32): trt.PluginFieldType.INT32,
        np.dtype(np.int64): trt.PluginFieldType.INT64,
    }
    return trt.PluginField(name, value, types[value.dtype]), value


def create(fields: list[Field]) -> bool:
    """Whether the creator makes a plugin of them."""
    creator = REGISTRY.get_creator(*IDENTITY)
    made = [field_of(name, value) for name, value in fields]
    collection = trt.PluginFieldCollection([field for field, _ in made])
    return creator.create_plugin("layer", collection, trt.TensorRTPhase.BUILD) is not None


def load(path: str) -> dict[str, Any]:
    handle = REGISTRY.load_library(path)
    creator = REGISTRY.get_creator(*IDENTITY)
    found = {
        "name": creator.name,
        "version": creator.plugin_version,
        "namespace": creator.plugin_namespace,
        "fields": [[field.name, field.type.name.lower()] for field in creator.field_names],
        "created": create(list(GOOD.items())),
    }
    del creator
    REGISTRY.deregister_library(handle)
    return found | {"errors": LOGGER.take(), "after": registered(), "mapped": is_mapped(path)}


def bad_fields(path: str) -> dict[str, Any]:
    """Of each way to be wrong: whether a plugin was made, and the messages."""
    from tests.plugins.tensorrt.bad_fields import CASES

    REGISTRY.load_library(path)
    outcomes = {}
    for name, change in CASES.items():
        LOGGER.take()
        made = create(change(list(GOOD.items())))
        outcomes[name] = {"made": made, "errors": LOGGER.take()}
    return {"outcomes": outcomes, "good_after_bad": create(list(GOOD.items()))}


def reload(path: str) -> dict[str, Any]:
    rounds = []
    for _ in range(3):
        handle = REGISTRY.load_library(path)
        rounds.append([registered(), create(list(GOOD.items())), is_mapped(path)])
        REGISTRY.deregister_library(handle)
        rounds[-1] += [registered(), is_mapped(path)]
    return {"rounds": rounds, "errors": LOGGER.take()}


def two_copies(path: str) -> dict[str, Any]:
    """The second copy is refused by the registry and leaves the first usable."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, Path(folder) / "libcopy.so")
        first = REGISTRY.load_library(path)
        errors_before = LOGGER.take()
        REGISTRY.load_library(str(copy))
        refusal = LOGGER.take()
        opened = ctypes.CDLL(str(copy))
        usable = create(list(GOOD.items()))
        _ctypes.dlclose(opened._handle)
        still = create(list(GOOD.items()))
        REGISTRY.deregister_library(first)
        return {
            "errors_before": errors_before,
            "refusal": refusal,
            "usable": usable,
            "still": still,
            "after": registered(),
        }


def only_opened(path: str) -> dict[str, Any]:
    """A host that knows no loadLibrary: opening registers, closing takes it back."""
    rounds = []
    for _ in range(2):
        opened = ctypes.CDLL(path)
        rounds.append([registered(), create(list(GOOD.items()))])
        _ctypes.dlclose(opened._handle)
        rounds[-1] += [registered(), is_mapped(path)]
    return {"rounds": rounds, "errors": LOGGER.take()}


def opened_then_loaded(path: str) -> dict[str, Any]:
    """Both ways in one process register once; unloading leaves nothing behind."""
    opened = ctypes.CDLL(path)
    before = registered()
    handle = REGISTRY.load_library(path)
    count = sum(
        getattr(creator, "plugin_namespace", "") == IDENTITY[2] for creator in REGISTRY.all_creators
    )
    created = create(list(GOOD.items()))
    REGISTRY.deregister_library(handle)
    _ctypes.dlclose(opened._handle)
    return {
        "before": before,
        "count": count,
        "created": created,
        "after": registered(),
        "mapped": is_mapped(path),
        "errors": LOGGER.take(),
    }


def left_open(path: str) -> dict[str, Any]:
    """The process ends with the library registered."""
    ctypes.CDLL(path)
    return {"registered": registered()}


SCENARIOS = (
    load,
    bad_fields,
    reload,
    two_copies,
    only_opened,
    opened_then_loaded,
    left_open,
)


def main() -> None:
    name, path = sys.argv[1:]
    scenario = {scenario.__name__: scenario for scenario in SCENARIOS}[name]
    print(json.dumps(scenario(path)), flush=True)


if __name__ == "__main__":
    main()
