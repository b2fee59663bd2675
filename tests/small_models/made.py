"""A plan with what it was made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from collab_plugin.plans.plan import Plan


@dataclasses.dataclass(frozen=True)
class Made:
    """A random model with statistics and a plan that `collab-plugin plan` made of them, all in one folder."""

    model: Path
    stats: Path
    path: Path
    plan: Plan
