"""Writes a Triton model repository that serves one engine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError
from trt_resa.runtime.serving import parameters, tensors
from trt_resa.version import __version__

CONFIG = "config.pbtxt"
VERSION = "1"
COPIED_ENGINE = "engine"

_MODEL = '''"""Served by trt_resa, which must be installed where this file runs."""

from trt_resa.runtime.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(
    engine_dir: Path,
    output_dir: Path,
    model_name: str,
    settings: Mapping[str, Any],
    *,
    copy_engine: bool = False,
    overwrite: bool = False,
) -> Path:
    """Add the model ``model_name`` to the repository ``output_dir`` and return its directory.

    ``settings``: parameters as in ``parameters.descriptions`` without the engine's directory. With
    ``copy_engine`` the repository needs nothing from outside. Raises ConfigError when the name or
    a setting is not allowed or the model exists (unless ``overwrite``), EngineError when
    ``engine_dir`` is not an engine directory.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model_name):
        raise ConfigError(
            f"model_name '{model_name}' cannot name a Triton model; use letters, digits, '.', '_' "
            "and '-'"
        )
    engine = EngineDirectory(engine_dir)
    source = engine.path.resolve()
    location = COPIED_ENGINE if copy_engine else str(source)
    strings = parameters.to_strings({parameters.ENGINE_DIR: location, **settings}, engine.config)
    target = output_dir / model_name
    if target.exists():
        _check_replaceable(target, overwrite)
    version = target / VERSION
    version.mkdir(parents=True, exist_ok=True)
    if copy_engine:
        _copy(source, version / COPIED_ENGINE)
    _write(version / "model.py", _MODEL)
    _write(target / CONFIG, config_text(model_name, strings))
    return target


def config_text(model_name: str, strings: Mapping[str, str]) -> str:
    """config.pbtxt, each tensor and parameter with what it means."""
    meanings = parameters.descriptions()
    lines = [
        f"# Written by trt-resa triton-repo {__version__}. Lines that begin with # are comments.",
        f"name: {_quoted(model_name)}",
        'backend: "python"',
        "",
        "# One prompt a request. Requests run together all the same, as many as the parameter",
        "# max_batch_size says: they are batched step by step, not by Triton.",
        "max_batch_size: 1",
        "",
        "# A request may have any number of responses: the pieces of a stream.",
        "model_transaction_policy { decoupled: true }",
        "",
        "# One process, which picks its device itself (parameter device); with more, each would",
        "# load the engine and take a KV cache of its own.",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
    ]
    for section, members in (("input", tensors.INPUTS), ("output", tensors.OUTPUTS)):
        lines += ["", f"{section} ["]
        for tensor in members:
            optional = section == "input" and tensor is not tensors.TEXT_INPUT
            comma = "" if tensor is members[-1] else ","
            lines += [f"  # {tensor.description}", f"  {_tensor(tensor, optional)}{comma}"]
        lines.append("]")
    for name, text in strings.items():
        value = f"value {{ string_value: {_quoted(text)} }}"
        lines += ["", f"# {meanings[name]}", f"parameters {{ key: {_quoted(name)} {value} }}"]
    unset = [name for name in meanings if name not in strings]
    lines += ["", "# More parameters that can be set in the same way:"]
    lines += [f"#   {name}: {meanings[name]}" for name in unset]
    return "\n".join(lines) + "\n"


def _tensor(tensor: tensors.Tensor, optional: bool) -> str:
    dims = ", ".join(str(size) for size in tensor.shape)
    end = " optional: true" if optional else ""
    return f'{{ name: "{tensor.name}" data_type: TYPE_{tensor.kind} dims: [ {dims} ]{end} }}'


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not (target / CONFIG).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} holds files that are no Triton model; give another model_name")
    if not overwrite:
        raise ConfigError(
            f"{target} exists already; give --overwrite to replace it or another --model_name"
        )


def _copy(engine: Path, target: Path) -> None:
    """A copy that takes its name when it is whole."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(engine, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
