"""GGUF files written anew by gguf-py: split, or with other keys, tensors or types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quant_shape_to_byte_shape
from numpy.typing import NDArray

from collab_plugin.formats.gguf_values import MetaValue


def write_copy(
    source: Path,
    out: Path,
    *,
    keys: Mapping[str, MetaValue | None] | None = None,
    tensors: Mapping[str, tuple[NDArray[Any], GGMLQuantizationType]] | None = None,
    more: Mapping[str, tuple[NDArray[Any], GGMLQuantizationType]] | None = None,
    without: Collection[str] = (),
    split: int = 0,
) -> Path:
    """``source`` with some ``keys`` set (None: left out), other stored ``tensors``, ``more``, and ``without`` some.

    ``split``: at most so many tensors a file; the files are then called OUT-0000N-of-0000M.gguf.
    """
    reader = GGUFReader(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents(), split_max_tensors=split)
    for name, meta in {**_keys(reader), **(keys or {})}.items():
        if meta is not None:
            writer.add_key_value(name, meta.value, meta.type, meta.subtype)
    for tensor in reader.tensors:
        if tensor.name not in without:
            data, kind = (tensors or {}).get(tensor.name, (tensor.data, tensor.tensor_type))
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    for name, (data, kind) in (more or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def write_typed(source: Path, out: Path, types: Mapping[str, str]) -> None:
    """``source`` with these tensors of these types, all zeros."""
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in GGUFReader(source).tensors}
    kinds = {name: GGMLQuantizationType[kind] for name, kind in types.items()}
    zeros = {
        name: (np.zeros(quant_shape_to_byte_shape(shapes[name], kind), np.uint8), kind) for name, kind in kinds.items()
    }
    write_copy(source, out, tensors=zeros)


def write_with_template(source: Path, out: Path, template: str) -> None:
    """``source`` with this chat template."""
    write_copy(source, out, keys={"tokenizer.chat_template": MetaValue(template, GGUFValueType.STRING)})


def write_split(source: Path, folder: Path, tensors: int) -> list[Path]:
    """``source`` as NAME-00001-of-0000N.gguf with at most so many tensors each."""
    out = write_copy(source, folder / source.name, split=tensors)
    return sorted(folder.glob(f"{out.stem}-*-of-*.gguf"))


def _keys(reader: GGUFReader) -> dict[str, MetaValue]:
    found = {}
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            found[field.name] = MetaValue(field.contents(), kind, inner)
    return found
