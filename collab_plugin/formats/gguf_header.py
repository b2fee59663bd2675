"""A strict parser of GGUF v2 and v3 headers: every count is checked against the bytes that are left.

Ours because gguf-py's reader trusts the counts it finds: a header with a wrong array length
makes it loop or allocate without bound.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile, Cursor
from collab_plugin.formats.foreign_file import HEAD, foreign_hint
from collab_plugin.formats.gguf_values import MetaValue

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_NAME = 64  # GGML_MAX_NAME, ggml.h:229
_OF_IK = 97  # from here on are types of ik_llama.cpp (IQ3_KS is 156: its issue 605); llama.cpp's end far below
_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("<u1"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in one file: ``offset`` is absolute, ``shape`` in numpy order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    metadata: dict[str, MetaValue]
    tensors: dict[str, StoredTensor]


_PART = re.compile(r"^(?P<whole>.+\.gguf)\.part\d+of(?P<count>\d+)$")  # a file cut by bytes, not a shard


class _Cursor:
    def __init__(self, file: ByteFile) -> None:
        self._bytes, self.where, self.size = Cursor(file), file.where, file.size

    @property
    def at(self) -> int:
        return self._bytes.at

    @property
    def left(self) -> int:
        return self._bytes.left

    def fail(self, what: str, do: str = "make it again") -> CollabError:
        return CollabError(f"{self.where} is not a sound GGUF file: {what}; {do}")

    def short(self, what: str) -> CollabError:
        """For a file that has fewer bytes than it says."""
        part = _PART.match(self.where.rpartition("/")[2])
        if part is None:
            return self.fail(what, "copy or download it again")
        whole, last = part["whole"], f"{part['whole']}.part{part['count']}of{part['count']}"
        return self.fail(what, f"join the parts: cat {whole}.part1of{part['count']} ... {last} > {whole}")

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise self.short(f"it ends inside {what} (at byte {self.at} of {self.size})")
        return self._bytes.take(size)

    def number(self, fmt: str, what: str) -> int:
        value: int = struct.unpack("<" + fmt, self.take(struct.calcsize(fmt), what))[0]
        return value

    def text(self, what: str) -> str:
        try:
            return self.take(self.number("Q", what), what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value_type(self, what: str) -> GGUFValueType:
        number = self.number("I", what)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"{what} has unknown type {number}") from None


def _read_scalar(cur: _Cursor, kind: GGUFValueType, what: str) -> Any:
    if kind == GGUFValueType.STRING:
        return cur.text(what)
    dtype = _SCALARS[kind]
    value = np.frombuffer(cur.take(dtype.itemsize, what), dtype)[0].item()
    return bool(value) if kind == GGUFValueType.BOOL else value


def _read_array(cur: _Cursor, what: str) -> MetaValue:
    kind = cur.value_type(what)
    count = cur.number("Q", what)
    left = cur.left
    if kind == GGUFValueType.ARRAY:
        raise cur.fail(f"{what} is an array of arrays, which GGUF readers do not support")
    if kind == GGUFValueType.STRING:
        if count > left // 8:
            raise cur.short(f"{what} claims {count} strings in {left} bytes")
        return MetaValue([cur.text(what) for _ in range(count)], GGUFValueType.ARRAY, kind)
    dtype = _SCALARS[kind]
    if count > left // dtype.itemsize:
        raise cur.short(f"{what} claims {count} values in {left} bytes")
    values = np.frombuffer(cur.take(count * dtype.itemsize, what), dtype).tolist()
    if kind == GGUFValueType.BOOL:
        values = [bool(v) for v in values]
    return MetaValue(values, GGUFValueType.ARRAY, kind)


def _read_value(cur: _Cursor, what: str) -> MetaValue:
    kind = cur.value_type(what)
    if kind == GGUFValueType.ARRAY:
        return _read_array(cur, what)
    return MetaValue(_read_scalar(cur, kind, what), kind)


def _read_tensor(cur: _Cursor, index: int) -> StoredTensor:
    name = cur.text(f"the name of tensor {index}")
    what = f"tensor {name!r}"
    if len(name.encode()) >= MAX_NAME:
        raise cur.fail(f"{what} has a name longer than {MAX_NAME - 1} bytes")
    dims = cur.number("I", what)
    if not 1 <= dims <= MAX_DIMS:
        raise cur.fail(f"{what} has {dims} dimensions")
    shape = tuple(cur.number("Q", what) for _ in range(dims))[::-1]
    number = cur.number("I", what)
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        own = _OF_IK <= number < 400
        whose = "one of ik_llama.cpp alone" if own else f"unknown to gguf-py {_gguf_version()}"
        raise cur.fail(
            f"{what} has type {number}, {whose}",
            "make it again at types of llama.cpp" if own else "update gguf, or make it again at known types",
        ) from None
    offset = cur.number("Q", what)
    if min(shape) < 1 or math.prod(shape) > 2**62:
        raise cur.fail(f"{what} has the impossible shape {list(shape)}")
    block, size = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cur.fail(f"{what} has rows of {shape[-1]} values, not a multiple of {kind.name}'s {block}")
    return StoredTensor(name, shape, kind, offset, math.prod(shape) // block * size)


def _gguf_version() -> str:
    from importlib.metadata import version

    return version("gguf")


def read_header(file: ByteFile) -> Header:
    """Parse the header of ``file``, reading little more than that.

    Raises CollabError for whatever is not sound, tensors outside the file or overlapping included.
    """
    cur = _Cursor(file)
    if cur.size < len(MAGIC) or cur.take(len(MAGIC), "the first bytes") != MAGIC:
        hint = foreign_hint(file.read(0, min(HEAD, file.size)).tobytes()) or "it does not start with 'GGUF'"
        raise CollabError(f"{file.where} is not a GGUF file: {hint}")
    version = cur.number("I", "the version")
    if version not in (2, 3):
        hint = " (big-endian files are not supported)" if version & 0xFFFF == 0 else ""
        raise cur.fail(f"version {version} is neither 2 nor 3{hint}", "make it again with a current llama.cpp")
    n_tensors = cur.number("Q", "the tensor count")
    n_keys = cur.number("Q", "the key count")
    left = cur.left
    # A key takes at least 13 bytes, a tensor entry at least 32.
    if n_keys > left // 13 or n_tensors > left // 32:
        raise cur.short(f"it claims {n_keys} keys and {n_tensors} tensors in {left} bytes")
    metadata = _unique(
        cur, "key", n_keys, lambda i: ((name := cur.text(f"key {i}")), _read_value(cur, f"key {name!r}"))
    )
    stored = _unique(cur, "tensor", n_tensors, lambda i: ((t := _read_tensor(cur, i)).name, t))
    return Header(metadata, _placed(cur, metadata, stored))


def _unique(cur: _Cursor, what: str, count: int, read: Callable[[int], tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index in range(count):
        name, value = read(index)
        if name in found:
            raise cur.fail(f"{what} {name!r} appears twice")
        found[name] = value
    return found


def _placed(cur: _Cursor, metadata: dict[str, MetaValue], stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Make offsets absolute and check that tensors lie in the file, aligned, apart from each other."""
    align = metadata.get("general.alignment", MetaValue(32, GGUFValueType.UINT32)).value
    if not isinstance(align, int) or align < 1 or align > 2**20 or align & (align - 1):
        raise cur.fail(f"general.alignment is {align!r}, not a power of two")
    start = -(-cur.at // align) * align
    placed, end, last = {}, start, ""
    for t in sorted(stored.values(), key=lambda t: t.offset):
        offset = start + t.offset
        if t.offset % align or offset < end:
            raise cur.fail(f"tensors {last!r} and {t.name!r} overlap or are not aligned to {align}")
        end, last = offset + t.nbytes, t.name
        if end > cur.size:
            raise cur.short(f"tensor {t.name!r} ends at byte {end} of {cur.size}: the file is truncated")
        placed[t.name] = StoredTensor(t.name, t.shape, t.type, offset, t.nbytes)
    return {name: placed[name] for name in stored}
