"""TensorRT-RTX as a library: importing it, its log, and the version it reports.

Importing this module imports ``tensorrt_rtx``; import it only where an engine is built or read.
Raises EngineError when the library is missing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from trt_resa.engine_dir import BuildInfo
from trt_resa.errors import EngineError

try:
    import tensorrt_rtx as trt
except (ImportError, OSError) as error:
    raise EngineError(
        f"TensorRT-RTX cannot be imported ({error}); install it with pip install "
        "'tensorrt-rtx-cu13>=1.5,<1.8', or build with --executors torch and run without it"
    ) from None

__all__ = ["FLAVOUR", "LOG", "VERSION", "check_engine_file", "create_context", "load_engine", "trt"]

FLAVOUR = "tensorrt_rtx"
VERSION: str = trt.__version__

_logger = logging.getLogger("trt_resa.tensorrt_rtx")

_LEVELS = {
    trt.ILogger.INTERNAL_ERROR: logging.ERROR,
    trt.ILogger.ERROR: logging.ERROR,
    trt.ILogger.WARNING: logging.WARNING,
    trt.ILogger.INFO: logging.DEBUG,
    trt.ILogger.VERBOSE: logging.DEBUG,
}


class _Log(trt.ILogger):
    """Sends TensorRT's messages to ``logging`` and keeps its errors for the message of a failure.

    Errors are logged at DEBUG alone: who called TensorRT raises them as one exception.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        level = _LEVELS[severity]
        if level == logging.ERROR:
            self._errors.append(" ".join(msg.split()))
            level = logging.DEBUG
        _logger.log(level, "%s", msg)

    def take_errors(self) -> str:
        """The errors since the last call as one line; empty when there were none."""
        text = "; ".join(dict.fromkeys(self._errors))
        self._errors.clear()
        return text


#: The one log of the process. TensorRT registers the first log that a builder or runtime is made
#: with and silently ignores every other while that one is in use, so nobody makes a second.
LOG = _Log()


def check_engine_file(path: Path) -> None:
    """Raise EngineError when a file is certainly no engine of TensorRT-RTX; needs no GPU.

    Without a GPU the library judges the header alone and answers 'invalid' to a good engine, so
    only its verdict 'malformed' counts.
    """
    runtime = trt.Runtime(LOG)
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    complete = len(header) == runtime.engine_header_size
    damaged = not complete or int(runtime.get_engine_validity(header)[1]) & malformed
    LOG.take_errors()  # that there is no GPU
    if damaged:
        raise EngineError(
            f"{path} is not a TensorRT-RTX engine; build it again with trt-resa build-engine"
        )


def check_version(info: BuildInfo, path: Path) -> None:
    """Raise EngineError when the engines of ``path`` were built with another TensorRT-RTX.

    Engines load in the version that built them alone.
    """
    if (info.tensorrt_flavour, info.tensorrt_version) != (FLAVOUR, VERSION):
        raise EngineError(
            f"the engines of {path} were built with {info.tensorrt_flavour} "
            f"{info.tensorrt_version} and this is {FLAVOUR} {VERSION}, which cannot load them; "
            "build the engine again with trt-resa build-engine, or install 'tensorrt-rtx-cu13=="
            f"{info.tensorrt_version}'"
        )


def load_engine(path: Path) -> Any:
    """The deserialised engine (``trt.ICudaEngine``) of a file, on the current GPU.

    Raises EngineError with TensorRT's own words where it cannot be loaded, as without a GPU.
    """
    LOG.take_errors()
    engine = trt.Runtime(LOG).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = LOG.take_errors() or "it gave no reason"
        raise EngineError(f"TensorRT-RTX {VERSION} could not load {path.name}: {reason}")
    return engine


def create_context(engine: Any) -> Any:
    """An execution context (``trt.IExecutionContext``) that compiles a shape's kernels at once.

    TensorRT's default compiles them in the background and runs slower ones until then; a CUDA graph
    captured meanwhile would keep the slower ones for good.
    """
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return engine.create_execution_context(config)
