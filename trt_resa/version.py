"""The version of the package, which pyproject.toml states."""

from __future__ import annotations

import importlib.metadata

try:
    __version__ = importlib.metadata.version("trt-resa")
except importlib.metadata.PackageNotFoundError:  # a bare checkout
    __version__ = "0+checkout"
