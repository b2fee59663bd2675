"""Dataclasses to and from JSON, strictly, and the JSON Schema that says the same."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from collab_plugin.errors import CollabError

T = TypeVar("T")
MAX_INT = 2**63 - 1


def to_plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples to what json writes; mapping keys become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], data: Any, where: str = "$") -> T:
    """Build dataclass ``kind`` from parsed JSON.

    Raises CollabError naming the JSON path for a missing, unknown or ill-typed member.
    """
    result: T = _build(kind, data, where)
    return result


def _build(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(args, data, where)
    if origin is typing.Literal:
        if data not in args:
            raise CollabError(f"{where} is {data!r}, not one of {', '.join(map(repr, args))}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise CollabError(f"{where} is not a list")
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise CollabError(f"{where} is not an object")
        return {_key(args[0], k, where): _build(args[1], v, f"{where}.{k}") for k, v in data.items()}
    return _scalar(kind, data, where)


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise CollabError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    unknown, missing = sorted(set(data) - set(names)), [n for n in names if n not in data]
    if unknown or missing:
        what = f"unknown member {unknown[0]!r}" if unknown else f"no member {missing[0]!r}"
        raise CollabError(f"{where} has {what}")
    return kind(**{n: _build(hints[n], data[n], f"{where}.{n}") for n in names})


def _union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    problem = CollabError(f"{where} may not be null")
    for kind in args:
        if kind is not type(None):
            try:
                return _build(kind, data, where)
            except CollabError as error:
                problem = error
    raise problem


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise CollabError(f"{where} has the key {key!r}, which is no number")
    return int(key)


def _scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if not math.isfinite(data):
            raise CollabError(f"{where} is not finite")
        return float(data)
    if kind is int and isinstance(data, int) and not isinstance(data, bool) and abs(data) <= MAX_INT:
        return data
    if kind is str and isinstance(data, str):
        return data
    if kind is bool and isinstance(data, bool):
        return data
    raise CollabError(f"{where} is {str(data)[:40]!r}, not {kind.__name__}")


def schema_of(kind: Any) -> dict[str, Any]:
    """JSON Schema (2020-12) of a type that `from_plain` accepts."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        members = {f.name: schema_of(hints[f.name]) for f in dataclasses.fields(kind)}
        return {
            "type": "object",
            "properties": members,
            "required": list(members),
            "additionalProperties": False,
        }
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(a) for a in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": schema_of(args[0])}
    if origin is not None and issubclass(origin, Mapping):
        rule: dict[str, Any] = {"type": "object", "additionalProperties": schema_of(args[1])}
        if args[0] is int:
            rule["propertyNames"] = {"pattern": "^[0-9]{1,9}$"}
        return rule
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    return {"type": names[kind]}
