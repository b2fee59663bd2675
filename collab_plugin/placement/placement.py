"""The placement: which memory tier holds each expert tensor of an artifact.

A tier is a memory with a device that computes from it. llama.cpp, and so Ollama, places whole tensors:
the experts of one layer and projection (``blk.3.ffn_up_exps.weight``) stay together. Reading, writing
and the schema: placement_file.py. Page: docs/formats/placement.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PLACEMENT_VERSION = 1

TierKind = Literal["gpu", "host"]


@dataclass(frozen=True)
class Tier:
    """``name`` is free; "gpu" is a device's own memory, "host" the processor's. ``bytes``: what may be used."""

    name: str
    kind: TierKind
    bytes: int


@dataclass(frozen=True)
class PlacedArtifact:
    """The GGUF that the placement is for: its general.name and the bytes of its files."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Placement:
    """``tiers`` from the fastest to the slowest. ``experts`` maps each expert tensor that is placed to the
    name of its tier; all other tensors go to the fastest. Empty: the engine places by itself (llama.cpp's
    --fit). ``context``: tokens of context that the memory was reckoned for. ``notes``: what a reader must
    know, one sentence each."""

    artifact: PlacedArtifact
    tiers: tuple[Tier, ...]
    experts: Mapping[str, str]
    context: int
    notes: tuple[str, ...]
