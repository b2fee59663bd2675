"""A small copy of a model to calibrate with: every matrix at one type, streamed from wherever the model lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.compression.as_gguf import cache_folder
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import QUANTIZED, TYPES, fallback, tensor_bytes, type_info
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.kernels import Kernels


def proxy_type(name: str) -> str:
    """The type called ``name``; CollabError for one that is no quantized type, or wants the importance matrix that is
    yet to be measured."""
    type_info(name)
    kind = name.upper()
    known = [each for each in QUANTIZED if not TYPES[each].wants_imatrix]
    if kind not in known:
        raise CollabError(f"`proxy` {name} cannot be made without an importance matrix; take one of {', '.join(known)}")
    return kind


def proxy_plan(checkpoint: Checkpoint, kind: str) -> Plan:
    """Every matrix at ``kind``, or at the nearest type that its rows fit; what is smaller already stays as it is."""

    def planned(info: TensorInfo) -> TensorPlan:
        wanted = fallback(kind, info.shape[-1]) if quantizable(info) else info.type.name
        size = tensor_bytes(wanted, info.shape)
        return TensorPlan(wanted, size, None) if size < info.nbytes else TensorPlan(info.type.name, info.nbytes, None)

    tensors = {name: planned(info) for name, info in checkpoint.tensors.items()}
    plan = dataclasses.replace(copy_plan(checkpoint), tensors=tensors)
    return dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)


def as_proxy(checkpoint: Checkpoint, kind: str, kernels: Kernels, threads: int, progress: OnProgress = silent) -> Path:
    """Return the copy at ``kind`` in the cache folder, made when it is not there yet.

    Memory stays bounded and nothing else is stored; an interrupted copy is gone on with. It is kept until the cache
    folder is emptied.
    """
    plan = proxy_plan(checkpoint, kind)
    out = cache_folder("gguf") / f"{plan.source.fingerprint.removeprefix('sha256:')[:32]}-{kind}.gguf"
    if not (out.is_file() and out.stat().st_size == plan.bytes):
        step = f"copying {checkpoint.address} at {kind} (kept in {out.parent})"
        with track(progress, step, unit="weights") as report:
            compress(checkpoint, plan, None, out, kernels=kernels, threads=threads, report=report)
    return out
