"""Frozen dataclasses as plain JSON and back, with errors that name the field."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from gft_edge.errors import SpecError

T = TypeVar("T")


def to_json(spec: Any) -> Any:
    """The plain dict, list and scalar form of a spec."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {f.name: to_json(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    if isinstance(spec, Mapping):
        return {key: to_json(value) for key, value in spec.items()}
    if isinstance(spec, (tuple, list)):
        return [to_json(item) for item in spec]
    return spec


def json_text(content: Any, indent: int | None = 2) -> str:
    """Plain content, or specs in it, as JSON, with null for NaN and infinity, which JSON has not.

    ASCII alone: file names need not be valid UTF-8.
    """
    return json.dumps(_finite(to_json(content)), allow_nan=False, indent=indent)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(item) for item in content] if isinstance(content, list) else content


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Rebuild a spec of type `kind`; `where` names the file in errors.

    Raises SpecError that names the field when one is missing, unknown, of another type, or not what the
    others make it.
    """
    return typing.cast(T, _decode(kind, data, where))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_fields(typing.cast(type, kind), data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if data not in arguments:
            raise SpecError(
                f"{where} is {reprlib.repr(data)}, expected one of {', '.join(arguments)}"
            )
        return data
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _decode(arguments[0], data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise SpecError(f"{where} is not a list")
        if arguments[-1] is not ... and len(data) != len(arguments):
            raise SpecError(f"{where} has {len(data)} entries, expected {len(arguments)}")
        return tuple(
            _decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data)
        )
    if origin is Mapping:
        if not isinstance(data, dict):
            raise SpecError(f"{where} is not an object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise SpecError(f"{where} is {reprlib.repr(data)}, too large a number") from None
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise SpecError(f"{where} is {reprlib.repr(data)}, expected {kind.__name__}")
    return data


def _decode_fields(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise SpecError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SpecError(
            f"{where} has unknown fields ({', '.join(unknown)}), written by a newer gft-edge: "
            "upgrade it here"
        )
    if missing := [name for name in fields if name not in data]:
        raise SpecError(f"{where} lacks the field {missing[0]!r}")
    values = {name: _decode(hints[name], data[name], f"{where}: {name}") for name in fields}
    spec = kind(**{name: value for name, value in values.items() if fields[name].init})
    for name, value in values.items():
        # A field that follows from the others.
        if not fields[name].init and value != getattr(spec, name):
            raise SpecError(f"{where}: {name} is {value!r}, the other fields say otherwise")
    return spec
