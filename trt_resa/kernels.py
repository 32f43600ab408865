"""The CUDA kernel library: finding it, loading it, launching from it.

Takes raw device addresses and a raw stream handle, so any framework can call it. Knows nothing of
tensors, executors or engines.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path

from trt_resa.errors import TrtResaError
from trt_resa.kernel_params import KERNELS, KernelParams, Status

LIBRARY_NAME = "libtrt_resa_kernels.so"
LIBRARY_VARIABLE = "TRT_RESA_KERNEL_LIBRARY"
BUILD_RECORD_NAME = "kernel_build.json"

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


class KernelLibraryError(TrtResaError):
    """The kernel library is missing, damaged, or of another version than this package."""


class KernelLaunchError(TrtResaError):
    """A launch was refused or failed; ``status`` is the code that the library returned."""

    def __init__(self, kernel: str, status: int, reason: str) -> None:
        super().__init__(f"The kernel {kernel} was not launched: {reason} (status {status}).")
        self.status = status


class KernelLibrary:
    """A loaded kernel library; ``load_library`` is the usual way to one.

    Loading needs no GPU and no driver. A launch enqueues on ``stream`` of the calling thread's
    current device and does not synchronise.

    Raises:
        KernelLibraryError: the file does not load, or is not the library of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
            self._declare()
        except (OSError, AttributeError) as error:
            raise KernelLibraryError(
                f"The kernel library {path} cannot be used ({error}); {_how_to_build()}."
            ) from error
        for params in KERNELS:
            size = int(getattr(self._library, f"trt_resa_sizeof_{params.kernel}_params")())
            if size != ctypes.sizeof(params):
                raise KernelLibraryError(
                    f"The kernel library {path} is of another version than this package (the "
                    f"parameters of {params.kernel} have {size} bytes there and "
                    f"{ctypes.sizeof(params)} here); {_how_to_build()}."
                )

    def _declare(self) -> None:
        library = self._library
        for name in ("trt_resa_version", "trt_resa_architectures"):
            getattr(library, name).restype = ctypes.c_char_p
        library.trt_resa_status_string.argtypes = [ctypes.c_int32]
        library.trt_resa_status_string.restype = ctypes.c_char_p
        library.trt_resa_gpc_of.argtypes = [ctypes.c_int32]
        library.trt_resa_gpc_of.restype = ctypes.c_int32
        library.trt_resa_num_blocks.argtypes = [ctypes.c_int64, ctypes.c_int32]
        library.trt_resa_num_blocks.restype = ctypes.c_int64
        library.trt_resa_num_selected.argtypes = [ctypes.c_int64, ctypes.c_double, ctypes.c_int64]
        library.trt_resa_num_selected.restype = ctypes.c_int64
        for params in KERNELS:
            getattr(library, f"trt_resa_sizeof_{params.kernel}_params").restype = ctypes.c_size_t
            launch = getattr(library, f"trt_resa_{params.kernel}")
            launch.argtypes = [ctypes.POINTER(params), ctypes.c_void_p]
            launch.restype = ctypes.c_int32
            for size, needed in (
                ("workspace", params.needs_workspace),
                ("counters", params.needs_counters),
            ):
                if needed:
                    function = getattr(library, f"trt_resa_{params.kernel}_{size}")
                    function.argtypes = [ctypes.POINTER(params), ctypes.POINTER(ctypes.c_size_t)]
                    function.restype = ctypes.c_int32

    @functools.cached_property
    def version(self) -> str:
        """Version of the package that the library was built from."""
        return str(self._library.trt_resa_version().decode())

    @functools.cached_property
    def architectures(self) -> tuple[str, ...]:
        """Architectures in CMake's notation; one without a suffix carries PTX for later GPUs."""
        return tuple(self._library.trt_resa_architectures().decode().split())

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the library's file, in hexadecimal."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def status_string(self, status: int) -> str:
        """What a status means and what is allowed."""
        return str(self._library.trt_resa_status_string(status).decode())

    def gpc_of(self, multiprocessor: int) -> int:
        """The GPC in which a multiprocessor of the current device lies, -1 where that is not known.

        0 to 3 lie in one half of the GPU, 4 to 7 in the other. It is measured once per device.
        """
        return int(self._library.trt_resa_gpc_of(multiprocessor))

    def num_blocks(self, num_tokens: int, block_size: int) -> int:
        """The kernels' own block arithmetic; ``trt_resa.blocks`` is its twin."""
        return int(self._library.trt_resa_num_blocks(num_tokens, block_size))

    def num_selected(self, num_blocks: int, keep_ratio: float, min_blocks: int) -> int:
        """The kernels' own size of a selection; ``trt_resa.blocks`` is its twin."""
        return int(self._library.trt_resa_num_selected(num_blocks, keep_ratio, min_blocks))

    def workspace_bytes(self, params: KernelParams) -> int:
        """Bytes of workspace that a launch needs on the current device; looks at no pointer.

        Raises:
            KernelLaunchError: the extents are refused, or CUDA reports an error.
        """
        return self._size(params, "workspace")

    def counter_bytes(self, params: KernelParams) -> int:
        """Bytes of counters that a launch needs; looks at no pointer.

        They are zero before the first launch and belong to the launches from then on. Those of the
        largest batch serve smaller ones too.

        Raises:
            KernelLaunchError: the extents are refused.
        """
        return self._size(params, "counters")

    def _size(self, params: KernelParams, what: str) -> int:
        size = ctypes.c_size_t()
        function = getattr(self._library, f"trt_resa_{params.kernel}_{what}")
        self._check(params, int(function(ctypes.byref(params), ctypes.byref(size))))
        return size.value

    def launch(self, params: KernelParams, stream: int = 0) -> None:
        """Enqueue the kernel that ``params`` belongs to on ``stream`` (a ``cudaStream_t``).

        Raises:
            KernelLaunchError: the parameters are refused, or CUDA reports an error.
        """
        function = getattr(self._library, f"trt_resa_{params.kernel}")
        self._check(params, int(function(ctypes.byref(params), stream)))

    def _check(self, params: KernelParams, status: int) -> None:
        if status != Status.OK:
            raise KernelLaunchError(params.kernel, status, self.status_string(status))


@functools.cache
def load_library() -> KernelLibrary:
    """The kernel library of this installation, loaded once.

    ``TRT_RESA_KERNEL_LIBRARY`` names a file to load instead. A checkout prefers the library that
    was built in its own ``build`` folder to an installed one.

    Raises:
        KernelLibraryError: there is none, with the reason and what mends it.
    """
    return KernelLibrary(find_library())


def find_library() -> Path:
    """Path of the kernel library; see ``load_library``."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise KernelLibraryError(
                f"{LIBRARY_VARIABLE} is {named!r}, which is no file; name a {LIBRARY_NAME} or "
                "unset it."
            )
        return Path(named)
    for folder in _folders():
        if (folder / LIBRARY_NAME).is_file():
            return folder / LIBRARY_NAME
    raise KernelLibraryError(
        f"The CUDA kernels are not part of this installation because {_why_missing()}; "
        f"{_how_to_build()}."
    )


def _is_checkout() -> bool:
    return (_CHECKOUT / "plugins" / "CMakeLists.txt").is_file()


def _folders() -> Iterator[Path]:
    if _is_checkout():
        yield _CHECKOUT / "build"
    yield _PACKAGE / "lib"
    # An editable install keeps this file in the checkout and the library in site-packages.
    try:
        distribution = importlib.metadata.distribution("trt-resa")
    except importlib.metadata.PackageNotFoundError:
        return
    yield Path(str(distribution.locate_file("trt_resa/lib")))


def _why_missing() -> str:
    for folder in _folders():
        record = folder / BUILD_RECORD_NAME
        if record.is_file():
            reason = json.loads(record.read_text(encoding="utf-8"))["reason"]
            return reason or f"{LIBRARY_NAME} was removed from {folder}"
    return "this checkout was neither built nor installed"


def _how_to_build() -> str:
    if _is_checkout():
        return "run 'cmake -S plugins -B build && cmake --build build' in the checkout"
    return (
        "reinstall with 'TRT_RESA_CUDA=1 pip install --force-reinstall --no-deps -v' and the "
        f"package's source, or set {LIBRARY_VARIABLE} to a {LIBRARY_NAME} built elsewhere"
    )
