"""Numbers in prose that the code holds: each sentence is made of the constants and must be on its page."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.goals import results
from benchmarks.quality.rows import read_rows
from benchmarks.quality.tables import RESULTS, TABLES, read

ROOT = Path(__file__).resolve().parents[2]


def constant(address: str) -> Any:
    """The value at "module:NAME" or "module:NAME.attribute", below collab_plugin."""
    module, _, names = address.partition(":")
    value: Any = import_module(f"collab_plugin.{module}")
    for name in names.split("."):
        value = getattr(value, name)
    return value


SIZE, N, WARNING = "stats.text_overlap:SIZE", "stats.text_overlap:N", "cli.evaluate:OVERLAP_WARNING"
LEAST, BORROW = "planning.pruning:MIN_SELECTIONS", "stats.stats:BORROW"
SAMPLE = "quantize.error:Sampling"
CONSIDERED, PREDICTOR = "planning.considered", "planning.predictor"
LAW = "planning.learned_weights"
# Page, text with places for the constants, the constants.
SENTENCES = [
    ("calibrate.md", "up to {:,} hashes of {}-token windows", (SIZE, N)),
    ("calibrate.md", "when more than {:.2%} of them", (WARNING,)),
    ("calibrate.md", "selected {} times on average", (LEAST,)),
    ("calibrate.md", "as if it had been {:.0f} more tokens", (BORROW,)),
    ("evaluate.md", "of its {:,} n-grams occur", (SIZE,)),
    ("formats/stats.md", "the up to {} smallest hashes of the text's distinct {}-token windows", (SIZE, N)),
    ("method.md", "mean of n_e is below {}", (LEAST,)),
    ("method.md", "(`--borrow`, {:.0f})", (BORROW,)),
    ("method.md", "up to {} experts, evenly spaced", (f"{SAMPLE}.slices",)),
    ("method.md", "to a relative gap of 10⁻⁶, for at most {:.0f} s", ("planning.allocators.knapsack:SECONDS.default",)),
    ("method.md", "the best candidate at {} budgets", (f"{CONSIDERED}:FRONT_POINTS",)),
    ("method.md", "from the smallest file to {} B", (f"{CONSIDERED}:FRONT_SPAN",)),
    ("method.md", "P is {:.0f} Σ_l", (f"{PREDICTOR}:PRUNING",)),
    (
        "method.md",
        "C = {} where a shared expert works on, else {} · {} / M",
        (
            "planning.pruning_law:PRUNED_BESIDE_SHARED",
            "planning.pruning_law:PRUNED_ALONE",
            "planning.pruning_law:SHALLOW",
        ),
    ),
    ("method.md", "{0} / max(L, {0})", (f"{LAW}:TABLE_LAYERS",)),
    ("method.md", "ω_out = {} times the mean over logits", (f"{LAW}:OUTPUT",)),
    ("method.md", "ω_i = ω_out · {} (q_l + κ (1 − q_l))", (f"{LAW}:WRITTEN",)),
    ("method.md", "κ = {}, κ = {} in layer 0", (f"{LAW}:SPREADS", f"{LAW}:SPREADS_FIRST")),
    ("method.md", "embedding: {} ω_out", (f"{LAW}:EMBEDDING",)),
    ("method.md", "each matrix of the attention: {} ω_out", (f"{LAW}:ATTENTION",)),
    ("method.md", "q_l, but at least {}", (f"{LAW}:LEAST_INNER",)),
    ("method.md", "f(x) = x₀ (x / x₀)^{} with x₀ = {}", (f"{PREDICTOR}:POWER", f"{PREDICTOR}:PIVOT")),
    ("method.md", "cost {} times as much", (f"{PREDICTOR}:REAL_ERRORS",)),
    ("method.md", "ε_i = c n_i / ω_i, at most {}", ("planning.measure.together:MOST_ERROR",)),
    ("method.md", "ω_i = D_G / ({} |G|)", ("planning.measure.probe:PROBE_ERROR",)),
    ("plan.md", "from the smallest file to {} times yours", (f"{CONSIDERED}:FRONT_SPAN",)),
    ("plan.md", "({} selections each on average)", (LEAST,)),
    ("plan.md", "is mixed with ({:.0f})", (BORROW,)),
]


def said(text: str, values: list[Any]) -> str:
    """``text`` with ``values``; shares as pages write them, "0.24 %"."""
    return re.sub(r"([\d.]+)%", r"\1 %", text.format(*values))


@pytest.mark.parametrize(("page", "text", "addresses"), SENTENCES, ids=[f"{p} {t}" for p, t, _ in SENTENCES])
def test_the_page_says_what_the_code_holds(page: str, text: str, addresses: tuple[str, ...]) -> None:
    assert said(text, [constant(address) for address in addresses]) in words(page)


def words(page: str) -> str:
    """The text of a page on one line."""
    return " ".join((ROOT / "docs" / page).read_text("utf-8").split())


OURS_MEASURED = ("probed", "probed, repaired")
"""The later where there is one."""
LEAST_BPW = 2.0
"""Below it llama-quantize has next to nothing that fits."""


def ratios(fits: bool) -> list[float]:
    """KL divergence of llama-quantize's file over a probed plan's, for each model and budget that both have."""
    rows = [r for r in read_rows(RESULTS / "quality.csv") if r.budget_bpw >= LEAST_BPW]
    ours = {(r.model, r.budget_bpw): r.mean_kld for v in OURS_MEASURED for r in rows if r.variant == v}
    theirs = [r for r in rows if r.variant == "llama-quantize" and r.fits == fits and (r.model, r.budget_bpw) in ours]
    return [r.mean_kld / ours[r.model, r.budget_bpw] for r in theirs]


def test_the_first_screen_says_what_was_measured() -> None:
    page = " ".join((ROOT / "README.md").read_text("utf-8").split())
    fits, more = ratios(fits=True), ratios(fits=False)
    assert f"has {min(fits):.1f} to {max(fits):.1f} times the divergence" in page
    assert f"the next larger preset still has {min(more):.1f} to {max(more):.1f} times" in page
    low = [r for r in results(read_rows(RESULTS / "quality.csv")) if r.bpw < LEAST_BPW and r.repaired and r.rival]
    shares = [r.repaired.mean_kld / r.rival.mean_kld for r in low if r.repaired and r.rival]
    assert f"Below 2 bits a plan with repair has {min(shares):.2f} to {max(shares):.2f} of the divergence" in page


def test_learned_weights() -> None:
    page, law = words("method.md"), "planning.learned_weights"
    table = constant(f"{law}:TABLE")
    assert all(f"| {part} | {weight} |" in page for part, weight in table.items())
    assert all(f"{share:g}" in page for share in constant(f"{law}:INNER").values())


def test_powers_of_two() -> None:
    assert "tiles of at most 32 MiB of float32 values" in words("compress.md")
    assert constant("compression.tiles:TILE_BYTES") == 32 * 2**20
    assert "about 2²¹ values in all and at most 2¹⁸ of one tensor" in words("method.md")
    assert (constant(f"{SAMPLE}.values"), constant(f"{SAMPLE}.per_tensor")) == (2**21, 2**18)


def test_tables_of_quality_are_the_measured_ones() -> None:
    page = (ROOT / "docs" / "quality.md").read_text("utf-8")
    for name, (file, table) in TABLES.items():
        made = table(read(RESULTS / file))
        assert f"<!-- {name} -->\n{made}\n<!-- /{name} -->" in page, (
            f"python -m benchmarks.quality.tables: {name} is old"
        )


def test_tables_of_scale_are_the_measured_ones() -> None:
    from benchmarks.scale.tables import TABLES as OF_SCALE

    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    for name, made in OF_SCALE.items():
        assert f"<!-- {name} -->\n{made()}\n<!-- /{name} -->" in page, (
            f"python -m benchmarks.scale.tables: {name} is old"
        )
