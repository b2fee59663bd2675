"""GGUF files written anew by gguf-py: split, or with tensors of other types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quant_shape_to_byte_shape


def write_typed(source: Path, out: Path, types: Mapping[str, str]) -> None:
    """``source`` with these tensors of these types, all zeros."""
    reader, writer = GGUFReader(source), GGUFWriter(out, "qwen3moe")
    _copy_keys(reader, writer)
    for tensor in reader.tensors:
        if tensor.name in types:
            kind = GGMLQuantizationType[types[tensor.name]]
            shape = tuple(int(n) for n in reversed(tensor.shape))
            writer.add_tensor(tensor.name, np.zeros(quant_shape_to_byte_shape(shape, kind), np.uint8), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def write_with_template(source: Path, out: Path, template: str) -> None:
    """``source`` with this chat template."""
    reader, writer = GGUFReader(source), GGUFWriter(out, "qwen3moe")
    _copy_keys(reader, writer)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def write_split(source: Path, folder: Path, tensors: int) -> list[Path]:
    """``source`` as NAME-00001-of-0000N.gguf with at most so many tensors each."""
    reader = GGUFReader(source)
    writer = GGUFWriter(folder / source.name, "qwen3moe", split_max_tensors=tensors)
    _copy_keys(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)
    return sorted(folder.glob("*-of-*.gguf"))


def _copy_keys(reader: GGUFReader, writer: GGUFWriter) -> None:
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
