"""Command-line flags derived from the configuration dataclasses, and the YAML of ``--config``.

A field's name, type, default and description stand in its dataclass; this module turns them into a
flag. Values come, in rising precedence, from the default, the YAML file, the flag.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from pydantic.fields import FieldInfo

from trt_resa.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

#: Key of the YAML section that holds a SparseAttentionConfig, as TensorRT-LLM names it.
SPARSE_SECTION = "sparse_attention_config"


def options_of(
    *classes: type, prefix: str = "", only: Collection[str] | None = None
) -> Callable[[F], F]:
    """Decorator that adds one option per field of each dataclass; see ``given`` for the values.

    ``only``: names of the fields that get one; None: all of them.
    """

    def decorate(function: F) -> F:
        for cls in reversed(classes):
            hints = typing.get_type_hints(cls, include_extras=True)
            for field in reversed(dataclasses.fields(cls)):
                if only is not None and field.name not in only:
                    continue
                function = _option(field, hints[field.name], prefix)(function)
        return function

    return decorate


def given(cls: type, flags: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of ``cls`` that were given as flags."""
    values = {field.name: flags.get(prefix + field.name) for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if value not in (None, ())}


def field_descriptions(cls: type) -> dict[str, str]:
    """What each field of a configuration dataclass means, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: _default_and_info(field, hints[field.name])[1]
        for field in dataclasses.fields(cls)
    }


def read_sparse_section(path: Path | None) -> dict[str, Any]:
    """The ``sparse_attention_config`` of a ``--config`` file that may hold nothing else."""
    content = read_yaml(path)
    unknown = set(content) - {SPARSE_SECTION}
    if unknown:
        raise ConfigError(
            f"--config {path}: unknown key '{min(unknown)}'; allowed keys: {SPARSE_SECTION}"
        )
    return dict(content.get(SPARSE_SECTION, {}))


def read_yaml(path: Path | None) -> dict[str, Any]:
    """Top-level mapping of a ``--config`` file; empty without one. Raises ConfigError."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--config {path} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            f"--config {path} must hold keys and values, not {type(content).__name__}"
        )
    section = content.get(SPARSE_SECTION, {})
    if not isinstance(section, dict):
        raise ConfigError(f"--config {path}: {SPARSE_SECTION} must hold keys and values")
    return content


def _option(field: dataclasses.Field[Any], hint: Any, prefix: str) -> Callable[[F], F]:
    default, info = _default_and_info(field, hint)
    kind = _click_type(hint)
    texts = isinstance(kind, _CommaSeparated) and kind.element is click.STRING
    shown = ",".join(default) if isinstance(default, tuple) else default
    note = "" if shown in (None, "") else f" [default: {shown}]"
    return click.option(
        f"--{prefix}{field.name}",
        type=click.STRING if texts else kind,
        multiple=texts,
        default=None,
        help=f"{info}{'; may be repeated' if texts else ''}{note}",
    )


def _default_and_info(field: dataclasses.Field[Any], hint: Any) -> tuple[Any, str]:
    description = ""
    for extra in typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ():
        if isinstance(extra, FieldInfo) and extra.description:
            description = extra.description
    default = None if field.default is dataclasses.MISSING else field.default
    return default, description


class _CommaSeparated(click.ParamType):
    """A tuple written as ``a,b``."""

    name = "list"

    def __init__(self, element: click.ParamType) -> None:
        self.element = element

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return tuple(self.element.convert(part, param, ctx) for part in parts if part)


def _click_type(hint: Any) -> click.ParamType:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _click_type(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return _click_type(inner[0])
    if origin is tuple:
        return _CommaSeparated(_click_type(typing.get_args(hint)[0]))
    if origin is typing.Literal:
        values = typing.get_args(hint)
        if all(isinstance(value, int) for value in values):
            return click.INT
        return click.Choice(list(values))
    plain: dict[Any, click.ParamType] = {
        int: click.INT,
        float: click.FLOAT,
        bool: click.BOOL,
        str: click.STRING,
    }
    return plain[hint]
