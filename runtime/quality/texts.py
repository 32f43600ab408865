"""Texts that every machine with this package has: documentation, source code, a licence."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from trt_resa.errors import ConfigError


def machine_texts() -> dict[str, str]:
    """By name: Python's language reference, a module of its library, NumPy's licences."""
    from pydoc_data.topics import topics

    texts = {
        "documentation": "\n".join(topics[name] for name in sorted(topics)),
        "source": Path(str(argparse.__file__)).read_text(encoding="utf-8"),
    }
    files = importlib.metadata.distribution("numpy").files or []
    licences = [file.read_text() for file in files if file.name.startswith("LICENSE")]
    if licences:
        texts["licence"] = max(licences, key=len)
    return texts


def read_texts(files: Sequence[Path]) -> dict[str, str]:
    """The texts of ``files`` by name of file, those of the machine when there are none."""
    if not files:
        return machine_texts()
    try:
        return {file.name: file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text cannot be read: {error}") from None
