"""What a GGUF is, read from its header, and the hashes that a pack is tied to it by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from collab_conformance.pack.pack_document import Artifact
from collab_plugin.checkpoint.gguf import GgufCheckpoint, open_gguf, shard_paths
from collab_plugin.checkpoint.kept_experts import kept_experts
from collab_plugin.checkpoint.prediction_layers import prediction_layers
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role
from collab_plugin.progress import Advance, untold

_PIECE = 16 * 2**20


def describe(path: Path, report: Advance = untold) -> Artifact:
    """Describe a GGUF file, or all shards of a split one; reads it whole for its hash (``report`` in bytes).
    CollabError for what is not a model."""
    if not path.is_file():
        raise CollabError(f"{path} is not a file; give a GGUF")
    paths = shard_paths(path)
    checkpoint = open_gguf(path)
    values = {key: meta.value for key, meta in checkpoint.metadata.items()}
    architecture = str(values["general.architecture"])
    if "token_embd.weight" not in checkpoint.tensors:
        raise CollabError(f"{path} has no token_embd.weight: it is not a language model")
    fingerprint = values.get("collab.plan.fingerprint")
    return Artifact(
        name=paths[0].name,
        sha256=_sha256(paths, report),
        bytes=sum(shard.stat().st_size for shard in paths),
        architecture=architecture,
        plan_fingerprint=fingerprint if isinstance(fingerprint, str) else None,
        tokenizer=tokenizer_hash(values),
        vocabulary=checkpoint.tensors["token_embd.weight"].shape[0],
        moe_layers=_moe_layers(checkpoint),
        expert_count=_count(values, f"{architecture}.expert_count"),
        experts_used=_count(values, f"{architecture}.expert_used_count"),
        types={name: info.type.name for name, info in checkpoint.tensors.items()},
        kept=kept_experts(checkpoint.metadata),
    )


def tokenizer_hash(values: dict[str, Any]) -> str:
    """sha256 (hex) over all tokenizer.ggml keys: what decides text's token ids, chat template left out."""
    keys = {key: value for key, value in sorted(values.items()) if key.startswith("tokenizer.ggml.")}
    return hashlib.sha256(json.dumps(keys, separators=(",", ":")).encode()).hexdigest()


def _sha256(paths: list[Path], report: Advance) -> str:
    digest, done = hashlib.sha256(), 0
    whole = sum(path.stat().st_size for path in paths)
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                done += len(piece)
                report(done, whole)
    return digest.hexdigest()


def _moe_layers(checkpoint: GgufCheckpoint) -> tuple[int, ...]:
    """Layers with a router; those for prediction, which no engine runs for logits, are left out."""
    routed = {i.layer for i in checkpoint.tensors.values() if i.role == Role.ROUTER and i.layer is not None}
    return tuple(sorted(routed - set(prediction_layers(checkpoint))))


def _count(values: dict[str, Any], key: str) -> int:
    value = values.get(key, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
