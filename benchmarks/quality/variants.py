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
    """A plan with ``options``; ``probed`` False: statistics alone."""

    def make(bench: Bench, variant: str, bpw: float) -> list[Row]:
        if options.get("experts_used") == "as it was":
            return bench.planned(variant, bpw, **{**options, "experts_used": bench.topology.experts_used})
        return bench.planned(variant, bpw, **options)

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
    "all parts": OURS[PROBED],
    "with confirmation": planned(experts_used="auto", confirm=3),
    "bits only (keep 100 %)": planned(keep="100%"),
    "without probes (default weights)": planned(experts_used="auto", probed=False),
    "without sensitivity (error alone)": planned(keep="100%", allocator="error-alone"),
    "without mixed types (uniform)": planned(keep="100%", allocator="uniform"),
    "without borrowed importance": planned(keep="100%", borrow=0.0),
    "experts in order of heat": planned(keep="100%", order="importance"),
    "keep 75 %, k scaled": planned(keep="75%"),
    "keep 75 %, k as it was": planned(keep="75%", experts_used="as it was"),
    "keep 75 %, k as it was, by mass": planned(keep="75%", experts_used="as it was", criterion="mass"),
    "keep 75 %, k as it was, by REAP": planned(keep="75%", experts_used="as it was", criterion="reap"),
}
