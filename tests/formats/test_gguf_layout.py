"""Our layout is GGUFWriter's file, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from collab_plugin.formats.gguf_layout import TensorSpec, layout
from collab_plugin.formats.gguf_values import MetaValue

V = GGUFValueType
META: dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]] = {
    "a.u8": (7, V.UINT8, None),
    "a.i16": (-3, V.INT16, None),
    "a.f32": (0.1, V.FLOAT32, None),
    "a.f64": (0.1, V.FLOAT64, None),
    "a.bool": (True, V.BOOL, None),
    "a.text": ("grüße", V.STRING, None),
    "a.u64": (2**63, V.UINT64, None),
    "a.texts": (["", "x", "日本"], V.ARRAY, V.STRING),
    "a.floats": ([0.5, 1e-3], V.ARRAY, V.FLOAT32),
    "a.ints": ([1, 2, 3], V.ARRAY, V.INT32),
    "a.bools": ([True, False], V.ARRAY, V.BOOL),
}


@pytest.mark.parametrize("alignment", [None, 8, 64, 256])
def test_layout_is_what_gguf_writer_writes(alignment: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{n}": rng.standard_normal((n, 3)).astype(np.float32) for n in (1, 5, 7)}
    writer = GGUFWriter(tmp_path / "theirs.gguf", "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (value, kind, sub) in META.items():
        writer.add_key_value(key, value, kind, sub_type=sub)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    meta = {"general.architecture": MetaValue("llama", V.STRING)}
    if alignment:
        meta["general.alignment"] = MetaValue(alignment, V.UINT32)
    meta |= {key: MetaValue(*entry) for key, entry in META.items()}
    plan = layout(meta, [TensorSpec(n, a.shape, GGMLQuantizationType.F32) for n, a in arrays.items()])
    ours = bytearray(plan.total)
    ours[: len(plan.header)] = plan.header
    for name, array in arrays.items():
        ours[plan.offsets[name] : plan.offsets[name] + plan.sizes[name]] = array.tobytes()
    assert bytes(ours) == (tmp_path / "theirs.gguf").read_bytes()
