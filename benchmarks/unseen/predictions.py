"""How far predicted KL divergence was off what was measured, over rows of the benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.quality.bench import Row

WANTED = 1.5
"""Factor that predicted and measured shall be within."""


def factor(row: Row) -> float | None:
    """Predicted over measured; None where the row's plan predicts nothing."""
    found = re.search(r"predicted ([\d.]+)", row.detail)
    return None if found is None else float(found[1]) / row.mean_kld


def predictions(rows: Sequence[Row], variant: str) -> str:
    """One line: how many plans of ``variant`` were predicted within `WANTED`, and the widest."""
    found = [(f, r) for r in rows if r.variant == variant and (f := factor(r)) is not None]
    if not found:
        return f"{variant}: no plans"
    widest, row = max(found, key=lambda pair: max(pair[0], 1 / pair[0]))
    near = sum(max(f, 1 / f) <= WANTED for f, _ in found)
    return (
        f"{variant}: {near} of {len(found)} predicted within {WANTED}, the widest {widest:.2f} "
        f"({row.model}, {row.budget_bpw} bpw)"
    )
