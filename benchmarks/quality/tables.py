"""Markdown tables of docs/quality.md from the CSV files in benchmarks/results.

    python -m benchmarks.quality.tables [benchmarks/results] [--write docs/quality.md]

With --write, replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in the page.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import median

from scipy.stats import spearmanr

from benchmarks.quality.goals import table as table_of_goals
from benchmarks.quality.rows import row_of
from benchmarks.quality.variants import DEFAULT, OURS, PROBED, RIVALS, VARIANTS

RESULTS = Path(__file__).resolve().parents[1] / "results"
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def goals(rows: Rows) -> str:
    return table_of_goals([row_of(r) for r in rows])


def goals_with_rivals(rows: Rows) -> str:
    """`goals` of the models that rivals were measured on."""
    judged = {r["model"] for r in rows if r["variant"] in RIVALS}
    return goals([r for r in rows if r["model"] in judged])


def quality(rows: Rows) -> str:
    """Mean KL divergence: a line a model and variant, a column a size; only what fits."""
    sizes = sorted(unique(rows, "budget_bpw"), key=float)
    lines = ["| model | variant | " + " | ".join(sizes) + " |", "|---|---|" + "---|" * len(sizes)]
    for model in unique(rows, "model"):
        for variant in VARIANTS:
            found = {
                r["budget_bpw"]: r for r in rows if r["model"] == model and r["variant"] == variant and row_of(r).fits
            }
            if found:
                bold = "**" if variant in OURS else ""
                cells = [f"{bold}{float(found[b]['mean_kld']):.4f}{bold}" if b in found else "" for b in sizes]
                lines.append(f"| {model} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen(rows: Rows) -> str:
    """What plans keep, at what they predict and what was measured."""
    lines = [
        "| model | bpw |" + "".join(f" {v} plan keeps | measured |" for v in OURS),
        "|---|---|" + "---|---|" * len(OURS),
    ]
    for model in unique(rows, "model"):
        for budget in sorted(unique(rows, "budget_bpw"), key=float):
            here = {r["variant"]: r for r in rows if r["model"] == model and r["budget_bpw"] == budget}
            if PROBED in here and DEFAULT in here:
                cells = [
                    f"{here[v]['detail']} | {float(here[v]['mean_kld']):.4f}" if v in here else " | " for v in OURS
                ]
                lines.append(f"| {model} | {budget} | {' | '.join(cells)} |")
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
    """Spearman's rank correlation by model and kind of plans, and how far the last kind of prediction is off."""
    kinds = ("error alone", "default weights", "probed")
    lines = [
        "| model | plans | number | " + " | ".join(kinds) + " | probed over measured, smallest to largest |",
        "|---|---|---|" + "---|" * len(kinds) + "---|",
    ]
    for model in unique(rows, "model"):
        for plans in unique(rows, "plans"):
            here = [r for r in rows if (r["model"], r["plans"]) == (model, plans)]
            measured = [float(r["measured"]) for r in here]
            ranks = [f"{spearmanr([float(r[k]) for r in here], measured).statistic:.2f}" for k in kinds]
            ratios = [float(r[kinds[-1]]) / float(r["measured"]) for r in here]
            cells = (model, plans, str(len(here)), *ranks, f"{min(ratios):.2f} to {max(ratios):.2f}")
            lines.append(f"| {' | '.join(cells)} |")
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


def repair(rows: Rows) -> str:
    """A line a case: with repair over without."""
    lines = ["| model | keep | bpw | without | repaired | ratio |", "|---|---|---|---|---|---|"]
    for r in rows:
        kld, repaired = float(r["kld"]), float(r["repaired"])
        cells = (f"{kld:.4f} ± {float(r['kld_stderr']):.4f}", f"{repaired:.4f} ± {float(r['repaired_stderr']):.4f}")
        lines.append(f"| {r['model']} | {r['keep']} | {r['bpw']} | {' | '.join(cells)} | {repaired / kld:.2f} |")
    return "\n".join(lines)


def feedback(rows: Rows) -> str:
    """A line a type, a column a number of tokens: the median over models of what is left of the error."""
    counts = sorted(unique(rows, "tokens"), key=int)
    parts = {"gate_and_up": "gate, up", "down": "down"}
    titles = [f"{name}, {int(n):,} tokens" for name in parts.values() for n in counts]
    lines = ["| type | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for kind in unique(rows, "type"):
        here = [r for r in rows if r["type"] == kind]
        cells = [f"{median(float(r[part]) for r in here if r['tokens'] == n):.2f}" for part in parts for n in counts]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {
    "goals": ("quality.csv", goals),
    "quality": ("quality.csv", quality),
    "chosen": ("quality.csv", chosen),
    "unseen": ("unseen.csv", chosen),
    "unseen_goals": ("unseen.csv", goals_with_rivals),
    "ablation": ("ablation.csv", ablation),
    "ideas": ("ideas.csv", ideas),
    "correlation": ("sensitivity.csv", correlation),
    "noise": ("noise.csv", noise),
    "repair": ("repair.csv", repair),
    "feedback": ("feedback.csv", feedback),
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
