"""TensorRT-RTX as a library: importing it, its log, and the version it reports.

Importing this module imports ``tensorrt_rtx``; import it only where an engine is built or read.
Raises EngineError when the library is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trt_resa.engine_dir import BuildInfo
from trt_resa.errors import EngineError
from trt_resa.trt_log import make_log

try:
    import tensorrt_rtx as trt
except (ImportError, OSError) as error:
    raise EngineError(
        f"TensorRT-RTX cannot be imported ({error}); install it with pip install "
        "'tensorrt-rtx-cu13>=1.5,<1.8', or build with --executors torch and run without it"
    ) from None

__all__ = [
    "FLAVOUR",
    "LOG",
    "VERSION",
    "check_engine_file",
    "check_gpu",
    "check_version",
    "create_context",
    "create_runtime_cache",
    "load_engine",
    "trt",
]

FLAVOUR = "tensorrt_rtx"
VERSION: str = trt.__version__

#: The one log of the process for this flavour.
LOG = make_log(trt, "trt_resa.tensorrt_rtx")


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


def check_gpu(capability: tuple[int, int]) -> None:
    """Raise EngineError where this version is known to refuse the GPU's compute capability."""
    major, minor = (int(part) for part in VERSION.split(".")[:2])
    if capability == (9, 0) and (major, minor) >= (1, 7):
        raise EngineError(
            f"TensorRT-RTX {VERSION} does not run on compute capability 9.0, and 1.5 and 1.6 do; "
            "install 'tensorrt-rtx-cu13<1.7' and build the engine again with trt-resa build-engine"
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


def create_runtime_cache(engine: Any) -> Any:
    """A store of compiled kernels (``trt.IRuntimeCache``), shared by contexts of many engines."""
    return engine.create_runtime_config().create_runtime_cache()


def create_context(engine: Any, cache: Any = None, own_scratch: bool = True) -> Any:
    """An execution context (``trt.IExecutionContext``) that compiles a shape's kernels at once.

    TensorRT's default compiles them in the background and runs slower ones until then; a CUDA graph
    captured meanwhile would keep the slower ones for good. ``cache``: where to look for kernels
    first. Without ``own_scratch`` the user gives memory with ``set_device_memory``.
    """
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    if cache is not None:
        config.set_runtime_cache(cache)
    if not own_scratch:
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
    context = engine.create_execution_context(config)
    if context is None:
        raise EngineError(f"TensorRT-RTX {VERSION} could not make a context: {LOG.take_errors()}")
    return context
