"""Versioned JSON documents: dataclasses to and from JSON, strictly, and the JSON Schema that says the same."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes

T = TypeVar("T")
MAX_INT = 2**63 - 1
PREFIX = "collab-plugin "


@dataclass(frozen=True)
class JsonFormat(Generic[T]):
    """One kind of JSON document: how it is written, read and described.

    A file holds ``name`` as "format", ``version`` as "version", and the members of the dataclass ``kind``. ``name``
    starts with "collab-plugin " and the rest of it is what messages call the document. ``most_bytes``: no file of
    this kind is larger. ``check`` raises CollabError, naming the JSON path, for what the types cannot say.
    With ``fingerprint`` a file also records what that gives as "fingerprint", and an edited file is refused.
    """

    name: str
    version: int
    kind: type[T]
    most_bytes: int
    check: Callable[[T], None] = lambda _: None
    fingerprint: Callable[[T], str] | None = None

    @property
    def noun(self) -> str:
        """What messages call it: "plan"."""
        return self.name.removeprefix(PREFIX)

    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of a file."""
        schema = schema_of(self.kind)
        head: dict[str, Any] = {"format": {"const": self.name}, "version": {"const": self.version}}
        if self.fingerprint:
            head["fingerprint"] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
        schema["properties"] = {**head, **schema["properties"]}
        schema["required"] = list(schema["properties"])
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": self.name, **schema}

    def text(self, document: T) -> str:
        """What a file holds. ValueError for a figure that is not finite, which JSON has no word for."""
        head: dict[str, Any] = {"format": self.name, "version": self.version}
        if self.fingerprint:
            head["fingerprint"] = self.fingerprint(document)
        return json.dumps({**head, **to_plain(document)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path, document: T) -> None:
        """Write the file, whole or not at all; CollabError when the system refuses."""
        write_bytes(path, self.text(document).encode())

    def read(self, path: Path) -> T:
        """Read and check a file; CollabError naming the file and the JSON path of what is wrong."""
        data = self._plain(path)
        recorded = data.pop("fingerprint", None) if self.fingerprint else None
        try:
            document = from_plain(self.kind, data)
            self.check(document)
        except CollabError as error:
            raise CollabError(f"{path}: {error}") from None
        if self.fingerprint and recorded != self.fingerprint(document):
            raise CollabError(f"{path} was changed after it was made (its fingerprint differs); make it again")
        return document

    def _plain(self, path: Path) -> dict[str, Any]:
        """The members of a file whose format and version are these."""
        try:
            with path.open("rb") as file:
                text = file.read(self.most_bytes + 1)
        except OSError as error:
            raise CollabError(f"cannot read the {self.noun} {path}: {error.strerror}") from None
        if len(text) > self.most_bytes:
            raise CollabError(f"{path} is larger than any {self.noun} file")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CollabError(f"{path} is not JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != self.name:
            raise CollabError(f"{path} is not a {self.noun} file of collab-plugin")
        version = data.pop("version", None)
        if version != self.version or isinstance(version, bool):  # in Python True == 1
            found = str(version)[:40]
            raise CollabError(f"{path} has {self.noun} version {found}; this collab-plugin reads {self.version}")
        return data


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
