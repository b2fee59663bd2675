"""What a pack holds: its document and the arrays beside it. Page: docs/formats/pack.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from collab_conformance.pack.scale_directions import Scales
from collab_plugin.engines.target import F32, I32, LogProbabilities

PACK_VERSION = 1
TOP = 20
"""Most probable tokens that a pack keeps at every position."""
GREEDY_TOP = 5
"""Most probable tokens that a pack keeps at every step of a greedy text."""


@dataclass(frozen=True)
class Artifact:
    """The GGUF that a pack was recorded from. ``sha256`` (hex) and ``bytes`` are of the file, of a split one
    of its shards one after the other. ``plan_fingerprint``: of the plan that made it, None where it tells
    none. ``tokenizer``: sha256 (hex) of its tokenizer.ggml keys (artifact.py). ``moe_layers``: layers with a
    router, ascending; ``expert_count`` and ``experts_used`` a layer and a token. ``types``: ggml type of each
    tensor. ``kept``: original ids of the experts kept, by layer; empty where the file tells none."""

    name: str
    sha256: str
    bytes: int
    architecture: str
    plan_fingerprint: str | None
    tokenizer: str
    vocabulary: int
    moe_layers: tuple[int, ...]
    expert_count: int
    experts_used: int
    types: Mapping[str, str]
    kept: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Recorder:
    """What computed the pack: the reference, or an engine on a device of a machine that is trusted."""

    kind: Literal["reference", "engine"]
    name: str
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """Token ids, one sequence from its start. ``positions``: where the whole vocabulary's logits are kept,
    ascending. ``greedy_steps``: tokens of the recorded greedy continuation, 0 for none."""

    name: str
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    greedy_steps: int = 0


@dataclass(frozen=True)
class PackDocument:
    """pack.json without its format and version. ``tensors_sha256``: hex, of pack.safetensors; ``scales_sha256``: of
    scales.safetensors, None where the pack has none. ``routing``: the pack has the experts chosen. An engine's
    pack need not have either."""

    artifact: Artifact
    recorder: Recorder
    routing: bool
    prompts: tuple[Prompt, ...]
    tensors_sha256: str
    scales_sha256: str | None


@dataclass(frozen=True)
class Routes:
    """Experts chosen: ``ids`` i32[layers, tokens, k], layers as `Artifact.moe_layers`; ``margins`` f32[layers,
    tokens], selection score of the last one chosen over the first one left out (measures.py)."""

    ids: I32
    margins: F32


@dataclass(frozen=True)
class Recording:
    """Of one prompt: ``top`` [tokens, TOP] at every position, ``logits`` f32[positions, vocabulary] at the
    prompt's positions, ``greedy`` [steps, GREEDY_TOP] where the prompt has greedy steps (column 0 is taken)."""

    top: LogProbabilities
    logits: F32
    routes: Routes | None
    greedy: LogProbabilities | None


@dataclass(frozen=True)
class Pack:
    """A pack as read and checked; ``recordings`` in the order of ``document.prompts``. ``scales``: how the logits
    answer to each tensor's scale, None where an engine recorded it."""

    document: PackDocument
    recordings: tuple[Recording, ...]
    scales: Scales | None
