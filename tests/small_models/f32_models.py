"""Trained checkpoints as F32 GGUFs, every expert kept: nothing between the file and the original but float32."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collab_llamacpp.native.ggml_kernels import GgmlKernels

from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.plugins.open_checkpoint import open_checkpoint


def with_config(model: Path, folder: Path, changes: Mapping[str, Any]) -> Path:
    """``folder`` as a copy of ``model`` by links, its config.json changed."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text()) | changes
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_f32(model: Path, out: Path, metadata: Mapping[str, int | None] | None = None) -> Path:
    """Write ``model`` to ``out`` with all tensors F32; ``metadata``: GGUF keys to change."""
    checkpoint = open_checkpoint(model)
    tensors = {n: TensorPlan("F32", tensor_bytes("F32", i.shape), None) for n, i in checkpoint.tensors.items()}
    plan = dataclasses.replace(copy_plan(checkpoint), tensors=tensors, metadata=metadata or {})
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    compress(checkpoint, plan, None, out, kernels=GgmlKernels(), threads=2, report=lambda done, total=None: None)
    return out
