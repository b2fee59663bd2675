"""Rows of benchmarks/results/*.csv: read, merged with those of a later run, written."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from benchmarks.quality.bench import Row

FIELDS = tuple(field.name for field in fields(Row))
NUMBERS = {"budget_bpw": float, "bytes": int, "bpw": float, "mean_kld": float, "stderr": float, "ppl": float,
           "ppl_original": float, "same_top1": float}  # fmt: skip


def row_of(line: Mapping[str, str]) -> Row:
    values: dict[str, Any] = {name: NUMBERS.get(name, str)(line[name]) for name in FIELDS}
    return Row(**values)


def read_rows(path: Path) -> list[Row]:
    """None where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row_of(line) for line in csv.DictReader(file)]


def merged(old: Sequence[Row], new: Sequence[Row], measured: Collection[tuple[str, float, str]]) -> list[Row]:
    """``new`` in the place of what was measured again (model, budget, variant); by model and budget."""
    stay = [r for r in old if (r.model, r.budget_bpw, r.variant) not in measured]
    models = list(dict.fromkeys(r.model for r in (*old, *new)))
    return sorted((*stay, *new), key=lambda r: (models.index(r.model), r.budget_bpw))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(astuple(row) for row in rows)
    part.replace(path)
