"""What this project wants of its plans against the best of their rivals, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.quality.bench import Row
from benchmarks.quality.variants import DEFAULT, PRESET, PROBED, REPAIRED, RIVALS

LOW = 2.0  # below it llama-quantize has next to nothing that fits, and all rivals count
NEAR = 3.0


def probed_goal(bpw: float) -> float:
    """Largest share of the best rival's KL divergence that a probed plan may have, repaired where it drops experts."""
    return 0.5 if bpw <= NEAR else 0.6


DEFAULT_GOAL = 1.0  # below it


@dataclass(frozen=True)
class Result:
    """One model at one size. ``rival``: the best preset that fits; below 2 bits the best of all rivals that fit."""

    model: str
    bpw: float
    rival: Row | None
    default: Row | None
    probed: Row | None
    repaired: Row | None

    def ratio(self, row: Row | None) -> float | None:
        return None if row is None or self.rival is None else row.mean_kld / self.rival.mean_kld

    def verdict(self, row: Row | None, wanted: str) -> str:
        """The ratio, with FAILS where the goal does not hold."""
        if row is None:
            return "none"
        ratio = self.ratio(row)
        if ratio is None:
            return "no rival fits"
        holds = ratio < DEFAULT_GOAL if wanted == DEFAULT else ratio <= probed_goal(self.bpw)
        return f"{ratio:.2f}" if holds else f"{ratio:.2f} FAILS"


def results(rows: Sequence[Row]) -> Iterator[Result]:
    """A result a model and size, in the order that rows have."""
    for model in dict.fromkeys(r.model for r in rows):
        for bpw in sorted({r.budget_bpw for r in rows if r.model == model}):
            here = [r for r in rows if r.model == model and r.budget_bpw == bpw]
            names = (PRESET,) if bpw >= LOW else tuple(RIVALS)
            rivals = [r for r in here if r.variant in names and r.fits]
            yield Result(
                model,
                bpw,
                min(rivals, key=lambda r: r.mean_kld, default=None),
                next((r for r in here if r.variant == DEFAULT), None),
                next((r for r in here if r.variant == PROBED), None),
                next((r for r in here if r.variant == REPAIRED), None),
            )


def table(rows: Sequence[Row]) -> str:
    """Markdown: the best rival at each size, ours over it, and whether the goals hold.

    The goal of probed plans is asked of the repaired one where there is one; they are the same where nothing is
    dropped.
    """
    lines = [
        "| model | bpw | best rival | its mean KLD | default | probed | repaired | default / rival | probed / rival |"
        " repaired / rival |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results(rows):
        rival = "none fits" if r.rival is None else f"{r.rival.variant}: {r.rival.detail}"
        ours = (r.rival, r.default, r.probed, r.repaired)
        klds = [f"{row.mean_kld:.4f}" if row is not None else "" for row in ours]
        share = None if r.repaired is None else r.ratio(r.probed)
        probed = r.verdict(r.probed, PROBED) if share is None else f"{share:.2f}"
        repaired = "" if r.repaired is None else r.verdict(r.repaired, REPAIRED)
        lines.append(
            f"| {r.model} | {r.bpw} | {rival} | {' | '.join(klds)} | {r.verdict(r.default, DEFAULT)} | {probed} | "
            f"{repaired} |"
        )
    return "\n".join(lines)
