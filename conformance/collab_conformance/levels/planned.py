"""A check before it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from collab_conformance.report.verify_report import Level


@dataclass(frozen=True)
class Planned:
    """``measure`` returns the figure; it raises NotOfferedError for what the engine does not give, anything
    else when the check failed. ``artifact`` "" for a check that needs none."""

    level: Level
    name: str
    artifact: str
    measure: Callable[[], float]
