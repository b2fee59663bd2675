"""The smallest Mixture-of-Experts GGUFs, with whatever is odd in files that people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFEndian, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import untold
from collab_plugin.quantize.kernels import Kernels
from small_models.hand_made_plans import pruned

EXPERTS, WIDTH, HEIGHT, VOCABULARY = 4, 32, 8, 5
F32 = NDArray[np.float32]
Keys = Mapping[str, Any]


def values(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensors(width: int = WIDTH, experts: int = EXPERTS) -> dict[str, F32]:
    """A layer of ``experts`` of ``width``, and what stands around it."""
    return {
        "token_embd.weight": values(VOCABULARY, WIDTH, seed=1),
        "output.weight": values(VOCABULARY, WIDTH, seed=2),
        "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.attn_q.weight": values(HEIGHT, WIDTH, seed=3),
        "blk.0.ffn_gate_inp.weight": values(experts, WIDTH, seed=4),
        "blk.0.ffn_gate_exps.weight": values(experts, width, WIDTH, seed=5),
        "blk.0.ffn_up_exps.weight": values(experts, width, WIDTH, seed=6),
        "blk.0.ffn_down_exps.weight": values(experts, HEIGHT, width, seed=7),
    }


def keys(architecture: str = "qwen3moe", **changes: Any) -> dict[str, Any]:
    """Keys by name, those of the architecture without its prefix; None leaves one out."""
    own = {"block_count": 1, "embedding_length": WIDTH, "expert_count": EXPERTS, "expert_used_count": 2} | changes
    return {f"{architecture}.{name}": value for name, value in own.items() if value is not None}


def write(
    path: Path,
    stored: Mapping[str, NDArray[Any]],
    metadata: Keys | None = None,
    *,
    architecture: str = "qwen3moe",
    big_endian: bool = False,
    alignment: int | None = None,
    split: int = 0,
    empty_first: bool = False,
) -> Path:
    """``split``: at most so many tensors a file; ``empty_first``: none in the first."""
    endian = GGUFEndian.BIG if big_endian else GGUFEndian.LITTLE
    writer = GGUFWriter(path, architecture, endianess=endian, split_max_tensors=split, small_first_shard=empty_first)
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, value in (keys(architecture) if metadata is None else metadata).items():
        _add(writer, name, value)
    for name, array in stored.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING}
    if isinstance(value, list):
        writer.add_key_value(name, value, GGUFValueType.ARRAY, kinds[type(value[0])])
    else:
        writer.add_key_value(name, value, kinds[type(value)])


def carried(
    source: Path, out: Path, kept: Sequence[int] | None = None, plan: Plan | None = None, kernels: Kernels | None = None
) -> Checkpoint:
    """What becomes of ``source`` at its stored types, or by ``plan``; with the experts ``kept`` alone."""
    checkpoint = open_gguf(source)
    plan = plan or copy_plan(checkpoint)
    if kept is not None:
        plan = pruned(checkpoint, plan, kept)
    compress(checkpoint, plan, None, out, kernels=kernels, threads=1, report=untold)
    return open_gguf(out)
