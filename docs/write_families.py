"""Write the table of families into docs/checkpoints.md: python docs/write_families.py

From the families that are built in and the figures in benchmarks/results/families.csv, which
`python -m benchmarks.families.compare` notes. tests/repository/test_docs.py fails when the table is not what this
writes.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from collab_plugin.checkpoint.families.builtin_families import FAMILIES
from collab_plugin.checkpoint.families.family import Family

HERE = Path(__file__).parent
FIRST, LAST = "<!-- written by docs/write_families.py -->\n", "<!-- end -->\n"
HEAD = """| class in config.json | becomes | error whole, pruned | converter | remarks |
|---|---|---|---|---|
"""
Row = dict[str, str]


def largest(rows: Sequence[Row], column: str) -> str:
    found = [float(row[column]) for row in rows if row[column]]
    return f"{max(found):.0e}".replace("e-0", "e-") if found else "none"


def converter(rows: Sequence[Row]) -> str:
    """What llama.cpp's converter makes otherwise, or why it makes nothing."""
    if not rows:
        return "not compared"
    made = [row for row in rows if not row["why_not"]]
    if not made:
        return f"stops: {rows[0]['why_not']}"
    other = sorted({name.partition(".")[2] for row in made for name in row["differences"].split()})
    return f"same but {', '.join(f'`{name}`' for name in other)}" if other else "same"


def line(family: Family, rows: Sequence[Row]) -> str:
    floats, packed = ([row for row in rows if row["case"].endswith("-mxfp4") == four] for four in (False, True))
    errors = f"{largest(floats, 'original')}, {largest(floats, 'pruned')}" if rows else "not compared"
    errors += f"; MXFP4 {largest(packed, 'original')}, {largest(packed, 'pruned')}" if packed else ""
    cells = (", ".join(family.classes), family.architecture, errors, converter(rows), family.remark)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def with_table(page: str, rows: Sequence[Row]) -> str:
    """``page`` with the table between its two marks."""
    before, _, rest = page.partition(FIRST)
    _, _, after = rest.partition(LAST)
    readable = [family for family in FAMILIES if family.conversion]
    lines = (line(family, [row for row in rows if row["family"] == family.name]) for family in readable)
    return before + FIRST + HEAD + "".join(lines) + LAST + after


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "checkpoints.md"
    figures = HERE.parent / "benchmarks" / "results" / "families.csv"
    with figures.open(newline="") as file:
        noted = list(csv.DictReader(file))
    target.write_text(with_table(target.read_text(), noted))
