"""Write the tables of families into docs/checkpoints.md: python docs/write_families.py

From the families that are built in and the figures in benchmarks/results/families.csv, which
`python -m benchmarks.families.compare` notes; and, of llama.cpp's architectures that no family reads, the reasons in
docs/unread_architectures.csv. tests/repository/test_docs.py fails when the tables are not what this writes, and
tests/checkpoint/test_families.py when an architecture of the pinned llama.cpp is in neither.
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
OTHERS = "<!-- written by docs/write_families.py, of docs/unread_architectures.csv -->\n"
NO_CLASS = "transformers has no class of it to compare with"
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


def with_table(page: str, mark: str, table: str) -> str:
    """``page`` with the table between its two marks."""
    before, _, rest = page.partition(mark)
    _, _, after = rest.partition(LAST)
    return before + mark + table + LAST + after


def families(rows: Sequence[Row]) -> str:
    readable = [family for family in FAMILIES if family.conversion]
    return HEAD + "".join(line(family, [row for row in rows if row["family"] == family.name]) for family in readable)


def others(rows: Sequence[Row]) -> str:
    """Architectures that no family reads, and why."""
    lines = (
        f"| {row['architecture']} | {row['models']} | {row['reason'].replace('no class', NO_CLASS)} |\n" for row in rows
    )
    return "| architecture | models | not read, because |\n|---|---|---|\n" + "".join(lines)


def rows_of(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "checkpoints.md"
    figures = rows_of(HERE.parent / "benchmarks" / "results" / "families.csv")
    written = with_table(target.read_text(), FIRST, families(figures))
    target.write_text(with_table(written, OTHERS, others(rows_of(HERE / "unread_architectures.csv"))))
