"""The placement: which memory tier holds the experts of an artifact, for engines that split an expert tensor and for
those that cannot.

llama.cpp, and so Ollama, places whole tensors: the experts of one layer and projection (``blk.3.ffn_up_exps.weight``)
stay together. vLLM's load format places single experts, and may move them while it runs. One document says both.
Reading, writing and the schema: placement_file.py. Page: docs/formats/placement.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PLACEMENT_VERSION = 2

TierKind = Literal["gpu", "unified", "host", "disk"]
"""A device's own memory, memory that processor and graphics share, the processor's, or a file's pages on disk."""


@dataclass(frozen=True)
class Tier:
    """``name`` is free. ``bytes``: what may be used, None: as much as is needed (a disk). ``bandwidth``: bytes a second
    that the engine reads from it, None where it is not known; ``measured``: on this machine, else it was given."""

    name: str
    kind: TierKind
    bytes: int | None
    bandwidth: float | None = None
    measured: bool = False


@dataclass(frozen=True)
class PlacedArtifact:
    """What the placement is for: its general.name, the bytes of its files, the fingerprint of the plan that made it."""

    name: str
    bytes: int
    plan: str | None = None


@dataclass(frozen=True)
class SpeedForecast:
    """Tokens a second of one sequence: ``expected``, and the ``roof`` with every read at full bandwidth and nothing
    else. ``error``: by how much earlier forecasts on this machine were off, as a share; None where there is none."""

    expected: float
    roof: float
    error: float | None


@dataclass(frozen=True)
class TensorPlacement:
    """By whole tensors. ``tiers``: expert tensor -> tier; all other tensors go to the fastest. Empty: the engine places
    by itself. ``fit``: all expert tensors are worth the same a byte, so that llama.cpp's own --fit, where the engine
    has it, does at least as well. ``reads``: tier -> share of the expert bytes that a token reads from it. ``speed``
    None: not known."""

    tiers: Mapping[str, str]
    fit: bool
    reads: Mapping[str, float]
    speed: SpeedForecast | None


@dataclass(frozen=True)
class PolicyUse:
    """The placement policy that chose, with its parameters; ``dynamic``: it goes on choosing while the model runs."""

    name: str
    parameters: Mapping[str, float]
    dynamic: bool


@dataclass(frozen=True)
class LayerExperts:
    """One layer, in the artifact's own numbers. ``tiers``: tier -> its experts, those expected to be chosen most first;
    each expert is in one tier. ``reads``: tier -> share of this layer's choices that are expected to fall on it."""

    tiers: Mapping[str, tuple[int, ...]]
    reads: Mapping[str, float]


@dataclass(frozen=True)
class ExpertPlacement:
    """By single experts. Where the policy is dynamic, ``layers`` is the start and the number of experts of the first
    tier is the room of the cache. ``reads``: tier -> share of all choices that are expected to fall on it. ``speed``
    None: not known."""

    policy: PolicyUse
    layers: Mapping[int, LayerExperts]
    reads: Mapping[str, float]
    speed: SpeedForecast | None


@dataclass(frozen=True)
class PlacementSource:
    """The stats file that the shares are from: its name, SHA-256, and tokens."""

    file: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Placement:
    """``tiers`` from the fastest to the slowest. ``tensors`` for engines that place whole tensors, ``experts`` for
    those that place single experts, None where there is nothing for these. ``stats`` None: none were given, experts
    count alike. ``context``: tokens of context that the memory was reckoned for. ``notes``: what a reader must know,
    one sentence each."""

    artifact: PlacedArtifact
    tiers: tuple[Tier, ...]
    tensors: TensorPlacement
    experts: ExpertPlacement | None
    stats: PlacementSource | None
    context: int
    notes: tuple[str, ...]
