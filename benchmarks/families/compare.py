"""Compare every family of Hugging Face folders with transformers and with llama.cpp's converter, and note the figures.

usage: PYTHONPATH=tests python -m benchmarks.families.compare

Writes benchmarks/results/families.csv, of which docs/write_families.py makes the table in docs/checkpoints.md. A minute
on an idle core; what `make native` builds must be there.
"""

from __future__ import annotations

import csv
import tempfile
from importlib.metadata import version
from pathlib import Path

from small_models.compared_families import ComparedFamily, compare_families
from small_models.family_cases import CASES, WHOLE
from small_models.native_builds import native_build
from small_models.torch_python import torch_python

OUT = Path(__file__).parents[1] / "results" / "families.csv"
COLUMNS = ("case", "family", "original", "pruned", "reference", "differences", "why_not", "llama_cpp_python")


def row(case: str, found: ComparedFamily) -> dict[str, str]:
    errors = {name: getattr(found, name) for name in ("original", "pruned", "reference")}
    return {
        "case": case,
        "family": found.family,
        **{name: "" if error is None else f"{error:.1e}" for name, error in errors.items()},
        "differences": " ".join(found.differences or ()),
        "why_not": found.why_not or "",
        "llama_cpp_python": version("llama-cpp-python"),
    }


def main() -> None:
    converter = native_build("llama_converter.sh")
    if converter.returncode:
        raise SystemExit(converter.stderr.strip())
    with tempfile.TemporaryDirectory() as folder:
        source = Path(converter.stdout.strip())
        compared = compare_families(torch_python("transformers"), Path(folder), CASES | WHOLE, source)
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(case, found) for case, found in compared.items())


if __name__ == "__main__":
    main()
