"""Artifact level: the file itself, before any engine reads it. Every figure counts differences; none is allowed.

Short and full form are the same. The figures are of the file, so that they are measured once for all targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from collab_conformance.pack.pack_document import Artifact
from collab_conformance.run.job import MeasuredFigure

# Figure -> what is compared; the hash alone would do, the others say what is wrong.
FIGURES: Mapping[str, Callable[[Artifact], Any]] = {
    "artifact.sha256": lambda a: a.sha256,
    "artifact.bytes": lambda a: a.bytes,
    "artifact.architecture": lambda a: a.architecture,
    "artifact.tokenizer": lambda a: a.tokenizer,
    "artifact.plan_fingerprint": lambda a: a.plan_fingerprint,
    "artifact.kept_experts": lambda a: {layer: list(kept) for layer, kept in a.kept.items()},
    "artifact.experts": lambda a: [a.expert_count, *a.moe_layers],
    "artifact.experts_used": lambda a: a.experts_used,
    "artifact.tensor_types": lambda a: dict(a.types),
}


def measured(name: str, found: Artifact, expected: Artifact) -> list[MeasuredFigure]:
    """Compare what the file of that name is with what the pack says of it."""
    return [_compare(name, figure, part(expected), part(found)) for figure, part in FIGURES.items()]


def _compare(artifact: str, name: str, expected: Any, found: Any) -> MeasuredFigure:
    apart = differences(expected, found)
    reason = f"{found!r}, the pack says {expected!r}" if apart and not isinstance(found, (dict, list)) else ""
    return MeasuredFigure("artifact", name, artifact, float(apart), reason, False)


def differences(expected: Any, found: Any) -> int:
    """How many members differ: of two mappings the keys with unlike values, of other values 1 or 0."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return sum(expected.get(key) != found.get(key) for key in {*expected, *found})
    return int(expected != found)
