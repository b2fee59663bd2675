"""The exact bytes of a GGUF v3 file before any tensor is written: header, offsets, total size."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.gguf_values import MetaValue, text
from collab_plugin.formats.tensor_names import layer_of

DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written; ``shape`` in numpy order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.type.name, self.shape)


@dataclass(frozen=True)
class Layout:
    """``header`` ends where tensor data starts; ``offsets`` are absolute; ``total`` is the file's size."""

    header: bytes
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    total: int


def padded(nbytes: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Round up to the alignment."""
    return -(-nbytes // alignment) * alignment


# llama-quant.cpp sets these anew, which moves them behind all other keys.
_LAST_KEYS = ("general.quantization_version", "general.file_type")


def copy_order(keys: Iterable[str], tensors: Iterable[str]) -> tuple[list[str], list[str]]:
    """The order of keys and tensors that `llama-quantize FILE OUT COPY` writes.

    A file in this order is a fixed point of COPY, which Ollama runs on every file that it is given.
    llama-model-loader.h (weight_name_comparer): by layer, those without one first, then by name.
    """
    rest = [key for key in keys if key not in _LAST_KEYS]
    names = sorted(tensors, key=lambda name: (-1 if (layer := layer_of(name)) is None else layer, name.encode()))
    return [*rest, *_LAST_KEYS], names


def layout(metadata: Mapping[str, MetaValue], tensors: Sequence[TensorSpec]) -> Layout:
    """Lay out a file with these keys and tensors in this order; every tensor padded, the last too."""
    alignment = int(metadata["general.alignment"].value) if "general.alignment" in metadata else DEFAULT_ALIGNMENT
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    parts += [text(key) + value.packed for key, value in metadata.items()]
    sizes = {t.name: t.nbytes for t in tensors}
    relative = 0
    offsets: dict[str, int] = {}
    for t in tensors:
        offsets[t.name] = relative
        dims = struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape))
        parts.append(text(t.name) + dims + struct.pack("<IQ", t.type.value, relative))
        relative += padded(sizes[t.name], alignment)
    header = b"".join(parts)
    header += b"\0" * (padded(len(header), alignment) - len(header))
    start = len(header)
    return Layout(header, {name: start + at for name, at in offsets.items()}, sizes, start + relative)
