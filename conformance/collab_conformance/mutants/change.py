"""A changed copy of a GGUF: other keys, other bytes of some tensors, everything else as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import Bytes, Checkpoint
from collab_plugin.formats.gguf_layout import TensorSpec, layout
from collab_plugin.formats.gguf_values import MetaValue


@dataclass(frozen=True)
class Data:
    """A tensor's new type and bytes; its shape stays."""

    type: GGMLQuantizationType
    bytes: Bytes


@dataclass(frozen=True)
class Change:
    """``keys``: new values, None to leave one out. ``tensors`` by name."""

    keys: Mapping[str, MetaValue | None] = field(default_factory=dict)
    tensors: Mapping[str, Data] = field(default_factory=dict)


def write_changed(checkpoint: Checkpoint, change: Change, out: Path) -> None:
    """Write ``checkpoint``, a GGUF, with ``change`` to ``out``. ValueError when a tensor's bytes do not fit."""
    keys = {**checkpoint.metadata, **change.keys}
    metadata = {key: value for key, value in keys.items() if value is not None}
    specs = [
        TensorSpec(name, info.shape, change.tensors[name].type if name in change.tensors else info.type)
        for name, info in checkpoint.tensors.items()
    ]
    plan = layout(metadata, specs)
    with out.open("wb") as file:
        file.write(plan.header)
        for name, offset in plan.offsets.items():
            data = change.tensors[name].bytes if name in change.tensors else checkpoint.read_raw(name)
            if data.nbytes != plan.sizes[name]:
                raise ValueError(f"{name}: {data.nbytes} bytes for {plan.sizes[name]}")
            file.seek(offset)
            file.write(data.tobytes())
        file.truncate(plan.total)
