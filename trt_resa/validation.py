"""Turns a mapping into a validated dataclass, and a validation failure into one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from trt_resa.errors import ConfigError

T = TypeVar("T")

#: Configuration of every validated dataclass of the project: an unknown key is an error.
STRICT = ConfigDict(extra="forbid")


def parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build ``cls`` from ``values``.

    ``where`` names the origin (a file, a flag group) and starts the message.
    Raises ConfigError with one sentence on the first bad key or value.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, cls)}") from None


def replace(config: T, values: Mapping[str, Any], where: str) -> T:
    """A copy of the dataclass ``config`` with ``values`` changed, validated again."""
    current = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return parse(type(config), {**current, **values}, where)


def explain(error: ValidationError, cls: type | None = None) -> str:
    """The first problem of a ValidationError as one sentence without a full stop."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = ", ".join(f.name for f in dataclasses.fields(cls)) if cls else "see the docs"
        return f"unknown key '{key}'; allowed keys: {allowed}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"the key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{key} = {first['input']!r}: {message}" if key else message
