"""A GGUF in several files, as llama-gguf-split names and marks them, written as if they were one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFValueType

from collab_plugin.compression.whole_output import SizedFile
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_layout import DEFAULT_ALIGNMENT, Layout, TensorSpec, layout, padded
from collab_plugin.formats.gguf_values import MetaValue

MOST_SHARDS = 65535  # split.no is a 16-bit number


@dataclass(frozen=True)
class Shards:
    """Files that together hold a model: ``layouts`` of each, and ``starts``, where each begins when they lie one behind
    the other, which is how offsets of tensors count here."""

    layouts: tuple[Layout, ...]
    starts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return self.starts[-1] + self.layouts[-1].total

    @property
    def offsets(self) -> dict[str, int]:
        """Where each tensor begins."""
        return {name: start + at for start, one in self._each() for name, at in one.offsets.items()}

    @property
    def header(self) -> bytes:
        """The headers of all files."""
        return b"".join(one.header for one in self.layouts)

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        """Everything that is no tensor's: headers, and the zeros between tensors."""
        for start, one in self._each():
            yield start, one.header
            ends = sorted(one.offsets[name] + one.sizes[name] for name in one.offsets)
            nexts = [*sorted(one.offsets.values()), one.total][1:]
            for end, following in zip(ends, nexts, strict=True):
                yield start + end, bytes(following - end)

    def files(self, out: Path) -> tuple[Path, ...]:
        """``out`` itself, or NAME-0000i-of-0000N.gguf beside it."""
        count = len(self.layouts)
        if count == 1:
            return (out,)
        stem = out.name.removesuffix(".gguf")
        return tuple(out.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))

    def _each(self) -> Iterator[tuple[int, Layout]]:
        return zip(self.starts, self.layouts, strict=True)


def shards_of(metadata: Mapping[str, MetaValue], tensors: Sequence[TensorSpec], most: int | None) -> Shards:
    """Cut ``tensors``, in their order, into files of at most ``most`` bytes; None, or all that fits: one file.

    The first file has the keys, all have those of a split. CollabError when a tensor alone is larger.
    """
    whole = layout(metadata, tensors)
    if most is None or whole.total <= most:
        return Shards((whole,), (0,))
    parts = _parts(metadata, tensors, most)
    if len(parts) > MOST_SHARDS:
        raise CollabError(f"`split` {most:,} bytes makes {len(parts):,} files; take a larger size")
    layouts = []
    for number, part in enumerate(parts):
        keys = {**(metadata if number == 0 else {}), **_split_keys(number, len(parts), len(tensors))}
        layouts.append(layout(keys, part))
    starts = [0]
    for one in layouts[:-1]:
        starts.append(starts[-1] + one.total)
    return Shards(tuple(layouts), tuple(starts))


def _parts(metadata: Mapping[str, MetaValue], tensors: Sequence[TensorSpec], most: int) -> list[list[TensorSpec]]:
    alignment = int(metadata["general.alignment"].value) if "general.alignment" in metadata else DEFAULT_ALIGNMENT
    marks = _split_keys(0, 1, 0)
    parts: list[list[TensorSpec]] = [[]]
    size = len(layout({**metadata, **marks}, ()).header) + alignment
    for tensor in tensors:
        entry = 24 + len(tensor.name.encode()) + 8 * len(tensor.shape)
        needed = entry + padded(tensor.nbytes, alignment)
        if size + needed > most:
            parts.append([])
            size = len(layout(marks, ()).header) + alignment
        if size + needed > most:
            raise CollabError(
                f"`split` {most:,} bytes: {tensor.name} alone takes {tensor.nbytes:,}; take a larger size"
            )
        parts[-1].append(tensor)
        size += needed
    return parts


def _split_keys(number: int, count: int, tensors: int) -> dict[str, MetaValue]:
    return {
        "split.no": MetaValue(number, GGUFValueType.UINT16),
        "split.count": MetaValue(count, GGUFValueType.UINT16),
        "split.tensors.count": MetaValue(tensors, GGUFValueType.INT32),
    }


class ShardFiles:
    """The files of ``shards``, open, as one: see `SizedFile`. What is written at once lies in one of them."""

    def __init__(self, shards: Shards, files: Sequence[SizedFile]) -> None:
        self._starts, self._files = shards.starts, files

    def write(self, at: int, data: memoryview) -> None:
        """Write ``data`` at ``at``."""
        number = bisect_right(self._starts, at) - 1
        self._files[number].write(at - self._starts[number], data)

    def read(self, at: int, size: int) -> bytes:
        """The ``size`` bytes at ``at``."""
        number = bisect_right(self._starts, at) - 1
        return self._files[number].read(at - self._starts[number], size)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        for file in self._files:
            file.sync()
