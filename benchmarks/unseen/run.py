"""Models that nobody tuned to: trained anew, then measured as the judges are.

    python -m benchmarks.unseen.run FOLDER --python ENV/bin/python [--models NAME ...] [--bpw 1.25 2.0 ...]

FOLDER gets the training texts (see benchmarks/train/corpora.py for the packages that they are in) and the models; one
that is there already is not trained again. ENV is a Python with torch, safetensors and tokenizers. Every row is a file
that was built and run. Prints what became of the goals and how far predictions were off; writes unseen.csv.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.quality.bench import ROOT, Bench
from benchmarks.quality.goals import table
from benchmarks.quality.rows import read_rows
from benchmarks.quality.run import BPW, measure
from benchmarks.quality.variants import OURS, VARIANTS
from benchmarks.unseen.predictions import predictions
from benchmarks.unseen.recipes import RECIPES, trained


def main() -> None:
    names = [r.shape for r in RECIPES]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--python", type=Path, help="trains; not needed where all models are there")
    p.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME")
    p.add_argument("--bpw", nargs="+", type=float, default=BPW)
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    p.add_argument("--chunks", type=int, default=4, help="windows of 512 tokens of each text, or as many tokens")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-unseen"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    folder, out = a.folder.absolute(), a.output / "unseen.csv"
    for recipe in RECIPES:
        if recipe.shape in a.models:
            model = trained(recipe, folder, (a.python or Path("python3")).absolute())
            bench = Bench(model, a.work / recipe.shape, a.chunks, a.threads)
            measure(bench, {v: VARIANTS[v] for v in a.variants}, a.bpw, out)
    rows = read_rows(out)
    print(table(rows))
    for variant in OURS:
        print(predictions(rows, variant))


if __name__ == "__main__":
    main()
