"""What is built at every size: ours, its rivals, and ours without each of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.quality.bench import Bench, Row
from benchmarks.quality.presets import presets, reap
from benchmarks.quality.rules import pruning_only, recipe

Make = Callable[[Bench, str, float], list[Row]]

DEFAULT = "default"
PROBED = "probed"
REPAIRED = "probed, repaired"
PRESET = "llama-quantize"


def planned(**options: Any) -> Make:
    """A plan with ``options``; ``probed`` False: statistics alone; ``more``: experts a token beyond the model's own."""

    def make(bench: Bench, variant: str, bpw: float) -> list[Row]:
        more = options.get("more")
        if more is None:
            return bench.planned(variant, bpw, **options)
        rest = {name: value for name, value in options.items() if name != "more"}
        return bench.planned(variant, bpw, experts_used=bench.topology.experts_used + more, **rest)

    return make


OURS: Mapping[str, Make] = {
    # `plan --stats S --budget B`, and the same after `probe`.
    DEFAULT: planned(probed=False),
    PROBED: planned(experts_used="auto"),
    # With `--samples` too: the kept experts are fitted, where some were dropped.
    REPAIRED: planned(experts_used="auto", repaired=True),
}
RIVALS: Mapping[str, Make] = {
    PRESET: presets,
    "REAP 75% + llama-quantize": reap("75%"),
    "REAP 50% + llama-quantize": reap("50%"),
    "the paper's recipe": recipe("75%", scaled=True),
    "the paper's recipe, k as it was": recipe("75%", scaled=False),
    "the paper's release": recipe("100%", scaled=True),
    "uniform": planned(probed=False, keep="100%", allocator="uniform"),
    "uniform, 75 %, k scaled": planned(probed=False, keep="75%", allocator="uniform"),
    "pruning only (Q8_0)": pruning_only,
}
VARIANTS: Mapping[str, Make] = {**OURS, **RIVALS}

ABLATIONS: Mapping[str, Make] = {
    "all parts": OURS[REPAIRED],
    "without repair": OURS[PROBED],
    # The rest is without repair too.
    "all experts": planned(keep="100%"),
    "without probes": OURS[DEFAULT],
    "without sensitivity (error alone, all experts)": planned(keep="100%", allocator="error-alone"),
    "without mixed types (uniform, all experts)": planned(keep="100%", allocator="uniform"),
    "keep 75 %, k scaled": planned(keep="75%"),
    "keep 75 %, k as it was": planned(keep="75%", more=0),
    "keep 75 %, k and one more": planned(keep="75%", more=1),
    "keep 75 %, k as it was, by freq-score": planned(keep="75%", more=0, criterion="freq-score"),
    "keep 75 %, k as it was, by mass": planned(keep="75%", more=0, criterion="mass"),
    "keep 75 %, k as it was, by REAP": planned(keep="75%", more=0, criterion="reap"),
}
