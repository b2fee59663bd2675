"""The plan: what is kept, how many experts a token uses, the type of every tensor, exact bytes.

Reading, writing and the JSON Schema: plan_file.py. Page: docs/formats/plan.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

PLAN_VERSION = 1

GroupPolicy = Literal["none", "balanced", "disband"]
Order = Literal["original", "importance"]
"""Of the kept experts in the file: their ids ascending, or the most important first."""
AnyOrder = Literal["original", "importance", "heat", "co-activation"]
"""The same, or as `compress` was told: the most chosen first, or those that are chosen together side by side."""
Layers = Literal["same", "varied"]
"""How many experts a layer keeps: as many as every other, or its own number."""
Requirement = Literal["expert-count-by-layer"]
"""What an engine must be able to do: hold another number of experts in each layer."""


@dataclass(frozen=True)
class Source:
    """The checkpoint that the plan is for. ``fingerprint``: checkpoint/identity.py."""

    fingerprint: str
    model_id: str
    name: str
    architecture: str
    format: str
    bytes: int
    parameters: int


@dataclass(frozen=True)
class Calibration:
    """The stats file that the plan used. ``frequency_only``: a foreign imatrix without weights.

    ``unseen``: experts never selected, over all layers. ``text_sketch``: base64 of little-endian u64
    values (text_overlap.py), written into the artifact so that evaluate can report leaked text. ``borrow``:
    tokens' worth of the layer's mean importance that each expert's own is mixed with
    (stats.ImatrixEntry.vector). ``file``: the stats file's name, looked for beside the plan; not in the
    fingerprint.
    """

    sha256: str
    tokens: int
    datasets: tuple[str, ...]
    engine: str
    frequency_only: bool
    unseen: int
    borrow: float
    text_sketch: str
    file: str


@dataclass(frozen=True)
class SensitivityFile:
    """The sensitivity document that the prediction rests on: its ``file`` name and SHA-256; not in the fingerprint."""

    sha256: str
    file: str


@dataclass(frozen=True)
class Repair:
    """The samples file that kept experts' `down` matrices are fitted to before they are quantized: SHA-256, ``tokens``
    in it, and ``file``, its name, looked for beside the plan. The name is not in the fingerprint."""

    sha256: str
    tokens: int
    file: str


@dataclass(frozen=True)
class Pruning:
    """``kept[layer]`` lists original expert ids in their new order.

    ``expert_count`` a layer: of every layer, or the mean of all where the plan requires "expert-count-by-layer".
    ``criterion`` and its own ``options`` say how they were chosen ("none" when all are kept), ``layers`` whether each
    layer keeps its own number, ``order`` in which order they stand;
    ``normalisation`` how frequency and score were scaled before mixing. ``mass_lost`` is the share
    of calibration activations that went to dropped experts (mean over layers; None without stats).
    """

    criterion: str
    options: Mapping[str, float | int | str]
    normalisation: str
    group_policy: GroupPolicy
    expert_count: int
    kept: Mapping[int, tuple[int, ...]]
    mass_lost: float | None
    order: AnyOrder = "original"
    layers: Layers = "same"

    @property
    def counts(self) -> tuple[int, ...]:
        """Experts kept in each layer that ``kept`` lists."""
        return tuple(len(ids) for ids in self.kept.values())

    @property
    def span(self) -> str:
        """Experts kept a layer, for people: "24", or "20 to 28 (mean 24)"."""
        low, high = min(self.counts, default=0), max(self.counts, default=0)
        return str(self.expert_count) if low == high else f"{low} to {high} (mean {self.expert_count})"


def requirements_of(pruning: Pruning) -> tuple[Requirement, ...]:
    """What an engine must be able to do to honour ``pruning``."""
    return ("expert-count-by-layer",) if len(set(pruning.counts)) > 1 else ()


@dataclass(frozen=True)
class Activation:
    """Experts a token uses before and after, and how the number was chosen ("share", "given", ...)."""

    original: int
    used: int
    rule: str


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the artifact: ggml type, exact bytes without padding, predicted relative error.

    ``error`` is the importance-weighted squared error over the weighted square of the values (0 when
    copied, None when not measured).
    """

    type: str
    nbytes: int
    error: float | None


@dataclass(frozen=True)
class Point:
    """A plan that was considered: what it keeps, its bytes, and the KL divergence it costs, in nats.

    ``kind``: "candidate" for one at the budget, "front" for one of the Pareto front at another budget,
    "baseline" for a rule to compare with, named by ``label`` ("pruning only", "paper"; bits only is the
    candidate that keeps every expert). ``measured_kld`` when it was built and evaluated (--confirm);
    ``chosen`` for the plan's own.
    """

    kind: Literal["candidate", "front", "baseline"]
    label: str
    expert_count: int
    experts_used: int
    bytes: int
    predicted_kld: float
    measured_kld: float | None
    chosen: bool


def ascending(points: Iterable[Point]) -> tuple[Point, ...]:
    """``points`` in the order of `Plan.considered`: ascending in bytes."""
    return tuple(sorted(points, key=lambda p: (p.bytes, p.kind, p.predicted_kld)))


@dataclass(frozen=True)
class Plan:
    """See the module's docstring. ``metadata`` holds the GGUF integer keys to set (None: remove).

    ``requires``: what an engine must be able to do to run what the plan describes (`requirements_of`).
    ``bytes`` is the exact size of the GGUF file, header and padding included; with ``requires`` no GGUF can
    be written, and it is what these tensors would take in one. ``budget``: what was asked for, None when no
    budget was given. ``bits_per_weight`` is 8 x bytes over the original's parameters, pruned ones included.
    ``predicted_kld``: KL divergence in nats that quantization and pruning are predicted to cost, as good as
    ``prediction`` says: where the weights behind it come from. ``sensitivity``: the document with probes of this
    model that was given, None without. ``allocator_options``: values of the allocator's own options.
    ``considered``: what the joint search weighed, ascending in bytes (empty when there was no search).
    ``repair``: None where kept experts stay as they are. ``versions``: tool, gguf, kernels, numpy. ``notes``: what a
    reader must know, one sentence each.
    """

    source: Source
    requires: tuple[Requirement, ...]
    calibration: Calibration | None
    pruning: Pruning
    activation: Activation
    metadata: Mapping[str, int | None]
    tensors: Mapping[str, TensorPlan]
    budget: int | None
    bytes: int
    bits_per_weight: float
    predicted_kld: float | None
    prediction: str
    sensitivity: SensitivityFile | None
    considered: tuple[Point, ...]
    allocator: str
    allocator_options: Mapping[str, float | int | str]
    base: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    repair: Repair | None = None
