"""Data-centre TensorRT as a library: importing it, its log, its version, and our plugin in it.

Importing this module imports ``tensorrt``; import it only where an engine is built or read. Raises
EngineError when the library is missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trt_resa.errors import EngineError
from trt_resa.kernels import KernelLibraryError, find_library
from trt_resa.plugin_fields import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from trt_resa.trt_log import make_log

try:
    import tensorrt as trt
except (ImportError, OSError) as error:
    raise EngineError(
        f"TensorRT cannot be imported ({error}); install it with pip install 'trt-resa[tensorrt]', "
        "or work in the container of the Dockerfile, or choose other --executors"
    ) from None

__all__ = ["FLAVOUR", "LOG", "VERSION", "plugin_creator", "trt"]

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
