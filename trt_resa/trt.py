"""Data-centre TensorRT as a library: importing it, its log, its version, and our plugin in it.

Importing this module imports ``tensorrt``; import it only where an engine is built or read. Raises
EngineError when the library is missing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any

from trt_resa.engine_dir import BuildInfo
from trt_resa.errors import EngineError
from trt_resa.kernels import KernelLibraryError, find_library
from trt_resa.plugin_fields import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from trt_resa.trt_log import make_log

try:
    import tensorrt as trt
except (ImportError, OSError) as error:
    raise EngineError(
        f"TensorRT cannot be imported ({error}); install it with pip install 'trt-resa[tensorrt]', "
        "or work in the container of the Dockerfile, or choose another executor"
    ) from None

__all__ = [
    "FLAVOUR",
    "LOG",
    "VERSION",
    "check_build",
    "create_context",
    "load_engine",
    "plugin_creator",
    "plugin_library_sha256",
    "trt",
]

FLAVOUR = "tensorrt"
VERSION: str = trt.__version__

PLUGIN_LIBRARY_NAME = "libtrt_resa_plugin.so"
PLUGIN_LIBRARY_VARIABLE = "TRT_RESA_PLUGIN_LIBRARY"

#: The one log of the process for this flavour.
LOG = make_log(trt, "trt_resa.tensorrt")


def plugin_creator() -> Any:
    """The creator of the attention plugin (``trt.IPluginCreatorV3One``), its library loaded once.

    ``TRT_RESA_PLUGIN_LIBRARY`` names a library to load instead of the installed one. Raises
    EngineError when there is none or TensorRT finds no plugin in it.
    """
    registry = trt.get_plugin_registry()
    creator = registry.get_creator(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    if creator is not None:
        return creator
    library = _find_plugin_library()
    LOG.take_errors()
    registry.load_library(str(library))
    creator = registry.get_creator(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    if creator is None:
        raise EngineError(
            f"TensorRT {VERSION} found no {PLUGIN_NAMESPACE}::{PLUGIN_NAME} in {library} "
            f"({LOG.take_errors() or 'it gave no reason'}); build the plugin for this TensorRT: "
            "install with CMAKE_ARGS=-DTENSORRT_INCLUDE_DIR=DIR, DIR being that of its headers"
        )
    return creator


def plugin_library_sha256() -> str | None:
    """Hash of the plugin library's file, in hexadecimal; None where there is no file, as when the
    host has registered a plugin of its own."""
    try:
        return hashlib.sha256(_find_plugin_library().read_bytes()).hexdigest()
    except EngineError:
        return None


def check_build(info: BuildInfo, path: Path, capability: tuple[int, int]) -> None:
    """Raise EngineError when the engine of ``path`` was built with another TensorRT, for another
    compute capability than ``capability``, or with another plugin library.

    TensorRT loads engines of its own version alone; an engine reserves the workspace that the
    plugin of its build asked for, so another one could write behind it.
    """
    if (info.tensorrt_flavour, info.tensorrt_version) != (FLAVOUR, VERSION):
        raise EngineError(
            f"the engine of {path} was built with {info.tensorrt_flavour} {info.tensorrt_version} "
            f"and this is {FLAVOUR} {VERSION}, which cannot load it; build it again with trt-resa "
            f"build-engine, or install 'tensorrt=={info.tensorrt_version}'"
        )
    here = ".".join(map(str, capability))
    if info.compute_capabilities and here not in info.compute_capabilities:
        raise EngineError(
            f"the engine of {path} was built on a GPU of compute capability "
            f"{', '.join(info.compute_capabilities)} and this one has {here}; build it again here "
            "with trt-resa build-engine"
        )
    built, found = info.plugin_library_sha256, plugin_library_sha256()
    if built is not None and found is not None and built != found:
        raise EngineError(
            f"the engine of {path} was built with the plugin library of sha256 {built[:16]} and "
            f"this one has {found[:16]}; build it again with trt-resa build-engine, or name the "
            f"library it was built with in {PLUGIN_LIBRARY_VARIABLE}"
        )


def load_engine(path: Path) -> Any:
    """The deserialised engine (``trt.ICudaEngine``) of a file, on the current GPU.

    Raises EngineError when the plugin is missing, when TensorRT cannot load the file, in its own
    words, and when the engine was built without its weights.
    """
    plugin_creator()
    LOG.take_errors()
    # Mapped, so that memory never holds the weights of the file a second time.
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise EngineError(
            f"{path} cannot be read ({error}); build it again with trt-resa build-engine"
        ) from None
    with content:
        engine = trt.Runtime(LOG).deserialize_cuda_engine(content)
    if engine is None:
        reason = LOG.take_errors() or "it gave no reason"
        raise EngineError(f"TensorRT {VERSION} could not load {path}: {reason}")
    if engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE) > 0:
        raise EngineError(
            f"{path} was built with --strip_plan and holds no weights; refit it with TensorRT, or "
            "build it again without --strip_plan"
        )
    return engine


def create_context(engine: Any) -> Any:
    """An execution context (``trt.IExecutionContext``) without memory of its own: give it some with
    ``set_device_memory``. Raises EngineError with TensorRT's own words."""
    LOG.take_errors()
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise EngineError(f"TensorRT {VERSION} could not make a context: {LOG.take_errors()}")
    return context


def _find_plugin_library() -> Path:
    named = os.environ.get(PLUGIN_LIBRARY_VARIABLE)
    try:
        library = Path(named) if named else find_library().with_name(PLUGIN_LIBRARY_NAME)
    except KernelLibraryError as error:
        raise EngineError(f"the TensorRT plugin is missing: {error}") from None
    if not library.is_file():
        raise EngineError(
            f"the TensorRT plugin {library} does not exist; install the package with "
            f"TRT_RESA_CUDA=1, or name a {PLUGIN_LIBRARY_NAME} in {PLUGIN_LIBRARY_VARIABLE}"
        )
    return library
