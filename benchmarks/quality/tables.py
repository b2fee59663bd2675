"""Markdown tables of docs/quality.md from the CSV files in benchmarks/results.

    python -m benchmarks.quality.tables [benchmarks/results] [--write docs/quality.md]

With --write, replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in the page.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from scipy.stats import spearmanr

RESULTS = Path(__file__).resolve().parents[1] / "results"
VARIANTS = (
    "ours", "bits only (keep 100 %)", "llama-quantize", "the paper's release", "REAP 75% + llama-quantize",
    "pruning only (Q8_0)",
)  # fmt: skip
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def quality(rows: Rows) -> str:
    """A line a file: model, budget, variant."""
    lines = [
        "| model | budget | file | bytes | bpw | mean KLD | perplexity (original) | top-1 | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in unique(rows, "model"):
        for budget in unique(rows, "budget_bpw"):
            here = [r for r in rows if r["model"] == model and r["budget_bpw"] == budget]
            here.sort(key=lambda r: (VARIANTS.index(r["variant"]), int(r["bytes"])))
            for r in here:
                bold = "**" if r["variant"] == "ours" else ""
                detail = re.sub(r", predicted .*", "", r["detail"])
                lines.append(
                    f"| {model} | {budget} | {bold}{r['variant']}{bold}: {detail} | {int(r['bytes']):,} | "
                    f"{float(r['bpw']):.3f} | {bold}{float(r['mean_kld']):.4f}{bold} ± {float(r['stderr']):.4f} | "
                    f"{float(r['ppl']):.2f} ({float(r['ppl_original']):.2f}) | {float(r['same_top1']):.1%} | "
                    f"{float(r['tokens_per_second']):.0f} |"
                )
    return "\n".join(lines)


def ratios(rows: Rows) -> str:
    """Ours over the best rival, a row a model: presets that fit, presets of any bytes shown, anything."""
    budgets = unique(rows, "budget_bpw")
    lines = [
        "| model | against | " + " | ".join(f"{b} bpw" for b in budgets) + " |",
        "|---|---|" + "---|" * len(budgets),
    ]
    against: dict[str, Callable[[dict[str, str]], bool]] = {
        "best preset that fits": lambda r: r["variant"] == "llama-quantize" and "(fits)" in r["detail"],
        "next preset, more bytes": lambda r: r["variant"] == "llama-quantize" and "(more bytes)" in r["detail"],
        "the paper's release": lambda r: r["variant"] == "the paper's release",
        "REAP + preset that fits": lambda r: r["variant"].startswith("REAP") and "(fits)" in r["detail"],
    }
    for model in unique(rows, "model"):
        for name, wanted in against.items():
            cells = []
            for budget in budgets:
                here = [r for r in rows if r["model"] == model and r["budget_bpw"] == budget]
                ours = [float(r["mean_kld"]) for r in here if r["variant"] == "ours"]
                theirs = [float(r["mean_kld"]) for r in here if wanted(r)]
                cells.append(f"{ours[0] / min(theirs):.2f}" if ours and theirs else "none")
            lines.append(f"| {model} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation(rows: Rows) -> str:
    """Mean KL divergence, a row a variant, a column a model and budget."""
    columns = sorted({(r["model"], r["budget_bpw"]) for r in rows}, key=lambda c: (c[0], float(c[1])))
    cells: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for r in rows:
        cells[r["variant"]][r["model"], r["budget_bpw"]] = f"{float(r['mean_kld']):.4f}"
    lines = ["| | " + " | ".join(f"{m}, {b} bpw" for m, b in columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [
        f"| {variant} | " + " | ".join(found.get(c, "none holds") for c in columns) + " |"
        for variant, found in cells.items()
    ]
    return "\n".join(lines)


def ideas(rows: Rows) -> str:
    models = unique(rows, "model")
    lines = ["| idea | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for idea in unique(rows, "idea"):
        cells = [
            f"{float(r['mean_kld']):.4f} ± {float(r['stderr']):.4f}"
            for m in models
            for r in rows
            if r["model"] == m and r["idea"] == idea
        ]
        lines.append(f"| {idea} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def correlation(rows: Rows) -> str:
    kinds = ("error alone", "default weights", "probed")
    lines = ["| model | plans | " + " | ".join(kinds) + " |", "|---|---|" + "---|" * len(kinds)]
    for model in unique(rows, "model"):
        here = [r for r in rows if r["model"] == model]
        measured = [float(r["measured"]) for r in here]
        cells = [f"{spearmanr([float(r[k]) for r in here], measured).statistic:.3f}" for k in kinds]
        lines.append(f"| {model} | {len(here)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def noise(rows: Rows) -> str:
    lines = ["| model | group | noise | quantized | ratio |", "|---|---|---|---|---|"]
    for r in rows:
        first = r["first_tensor"].removesuffix(".weight")
        lines.append(
            f"| {r['model']} | {r['part']}, {first} | {float(r['noise']):.4f} | {float(r['quantized']):.4f} "
            f"| {float(r['ratio']):.2f} |"
        )
    return "\n".join(lines)


def unique(rows: Rows, column: str) -> list[str]:
    return list(dict.fromkeys(r[column] for r in rows))


TABLES = {
    "ratios": ("quality.csv", ratios),
    "quality": ("quality.csv", quality),
    "ablation": ("ablation.csv", ablation),
    "ideas": ("ideas.csv", ideas),
    "correlation": ("sensitivity.csv", correlation),
    "noise": ("noise.csv", noise),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("results", type=Path, nargs="?", default=RESULTS)
    p.add_argument("--write", type=Path)
    a = p.parse_args()
    made = {name: make(read(a.results / file)) for name, (file, make) in TABLES.items() if (a.results / file).exists()}
    if a.write is None:
        print("\n\n".join(made.values()))
        return
    page = a.write.read_text()
    for name, table in made.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = page.partition(start)
        page = before + start + table + "\n" + end + rest.partition(end)[2]
    a.write.write_text(page)


if __name__ == "__main__":
    main()
