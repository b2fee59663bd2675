r"""Hold the mutants of artifacts to the right artifacts' packs on every target here: the table of what caught them.

    python conformance/measure_mutants.py [--target llamacpp:cpu] [--artifact out.gguf --pack pack/] \
        [--mutant NAME] [--keep cells.json] [-o FILE.md]

Without --artifact the suite's own. The artifact level is left out, as its hash would catch every one. What the short
form misses is held to the full form. Exit code 1 when one was not caught.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from collab_conformance.judge.limits import read_limits
from collab_conformance.mutants.make_mutant import Made, make_mutants
from collab_conformance.mutants.mutants import MUTANTS
from collab_conformance.report.verify_report import Check, Level, TargetReport
from collab_conformance.run.job import Job, Skip, Subject
from collab_conformance.run.run_identity import machine
from collab_conformance.run.run_target import run_target

from collab_plugin.engines.target import TargetInfo
from collab_plugin.plugins.manager import registry

LEVELS: tuple[Level, ...] = ("routing", "logits", "text")
SCALES = tuple(Skip(check, "only scales are wanted") for check in ("routing.*", "logits.[!t]*", "text.*"))
FORMS: Mapping[str, tuple[bool, tuple[Skip, ...]]] = {
    "": (True, ()),
    "full: ": (False, SCALES),
    "full, all checks: ": (False, ()),
}
"""What is run one after the other until a mutant is caught, cheapest first: a cell's beginning, short, skips."""
TIME_LIMIT = 3 * 3600.0
MISSED = "**not caught**"


@dataclass(frozen=True)
class Row:
    """One mutant of one artifact and, by target, what caught it."""

    artifact: str
    made: Made
    cells: dict[str, str]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", action="append", help="only these (default: all that run here)")
    p.add_argument("--artifact", type=Path, action="append", default=[])
    p.add_argument("--pack", type=Path, action="append", default=[])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--mutant", action="append", help="only these (default: all)")
    p.add_argument("--keep", type=Path, help="JSON file of cells: those in it are not run again")
    p.add_argument("-o", "--output", type=Path)
    a = p.parse_args()
    subjects = [Subject(g.stem, str(g), str(k)) for g, k in zip(a.artifact, a.pack, strict=True)] or suite()
    infos = [i for i in targets() if i.absent is None and (not a.target or i.name in a.target)]
    with tempfile.TemporaryDirectory(prefix="collab-mutants-") as folder:
        made = {s.name: make_mutants(s, Path(folder)) for s in subjects}
        wanted = a.mutant or [mutant.name for mutant in MUTANTS]
        wrong = [m.subject for each in made.values() for m in each if m.subject and m.mutant.name in wanted]
        found: dict[str, dict[str, str]] = json.loads(a.keep.read_text()) if a.keep and a.keep.exists() else {}
        for info in infos:
            cells = found.setdefault(info.name, {})
            left = [s for s in wrong if s.name not in cells]
            for _, group in groupby(left, lambda s: s.pack):
                cells |= caught(info, list(group), a.threads)
                if a.keep:
                    a.keep.write_text(json.dumps(found, indent=1))
    rows = [
        Row(name, m, {t: cells.get(m.subject.name, "") for t, cells in found.items()} if m.subject else {})
        for name, each in made.items()
        for m in each
    ]
    text = page(rows, sorted(found))
    print(text)
    if a.output:
        a.output.write_text(text)
    return int(any(MISSED in row.cells.values() for row in rows))


def suite() -> list[Subject]:
    from collab_conformance.suite.suite_subjects import suite_subjects

    return list(suite_subjects())


def targets() -> list[TargetInfo]:
    return [info for provider in registry().targets.values() for info in provider.find()]


def caught(info: TargetInfo, subjects: Sequence[Subject], threads: int) -> dict[str, str]:
    """What failed for each subject in the first form that failed it, MISSED when none did."""
    cells: dict[str, str] = {}
    for begin, (short, skips) in FORMS.items():
        left = [s for s in subjects if s.name not in cells]
        for name, failed in failures(info, left, threads, short, skips).items():
            if failed:
                cells[name] = begin + cell(failed)
    return {s.name: cells.get(s.name, MISSED) for s in subjects}


def failures(
    info: TargetInfo, subjects: Sequence[Subject], threads: int, short: bool, skips: tuple[Skip, ...]
) -> dict[str, list[Check]]:
    """The checks that each subject failed. A child that dies in one is a failure of it; the others are run again."""
    found: dict[str, list[Check]] = {}
    while left := [s for s in subjects if s.name not in found]:
        report = run(info, left, threads, short, skips)
        died = report.verdict == "fail" and report.reason.startswith("in ")
        for subject in left:
            checks = [check for check in report.checks if check.artifact == subject.name]
            failed = [check for check in checks if check.verdict == "fail"]
            if failed or (checks and not died):
                found[subject.name] = failed
        if not died and len(found) < len(subjects):
            raise SystemExit(f"{info.name}: {report.verdict}, {report.reason}")
        form = "short" if short else "full"
        print(f"\n{info.name}, {form}: {len(found)} of {len(subjects)}, {report.seconds:.0f} s", file=sys.stderr)
    return found


def run(
    info: TargetInfo, subjects: Sequence[Subject], threads: int, short: bool, skips: tuple[Skip, ...]
) -> TargetReport:
    def show(target: str, check: str, done: int, total: int) -> None:
        print(f"\r{target} {done}/{total} {check:70}", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory() as scratch:
        job = Job(info.name, tuple(subjects), LEVELS, short, threads, 0, scratch, skips)
        provider = registry().targets[info.engine]
        return run_target(info, provider, job, limits=read_limits(), time_limit=TIME_LIMIT, progress=show)


def cell(failed: Sequence[Check]) -> str:
    """The clearest of the checks that failed: by how many times the limit the figure is."""
    first = max(failed, key=clearness)
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    if first.value is None or first.limit is None:
        return f"{first.name}: {first.reason[:80]}{more}"
    return f"{first.name} {first.value:.2g} ({clearness(first):.3g} × limit){more}"


def clearness(check: Check) -> float:
    if check.value is None or check.limit is None:
        return float("inf")
    if check.limit.bound == "at-least":
        return (1 - check.value) / max(1 - check.limit.value, 1e-9)
    return check.value / check.limit.value if check.limit.value else 1e3 * check.value


def page(rows: Sequence[Row], names: Sequence[str]) -> str:
    bugs = dict.fromkeys((row.made.mutant.name, row.made.mutant.bug) for row in rows)
    cells = [cell for row in rows for cell in row.cells.values() if cell]
    missed = sum(cell == MISSED for cell in cells)
    lines = [
        "<!-- Written by conformance/measure_mutants.py; do not edit. -->",
        "# Mutants: does verify fail wrong artifacts?",
        "",
        f"Of {len(cells)} runs of a mutant on a target {len(cells) - missed} were failed by verify. "
        f"Measured {datetime.date.today():%Y-%m-%d} on {machine()}: levels {', '.join(LEVELS)} against the right "
        "file's pack, the artifact level left out. A cell names the check that caught the mutant most clearly, in the "
        "short form of the suite where it does not say full.",
        "",
        *(f"- **{name}**: {bug}." for name, bug in bugs),
        "",
        f"| artifact | mutant | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
        *(line(row, names) for row in rows if row.made.subject),
        "",
        "Not applicable:",
        *(f"- {row.artifact}, {row.made.mutant.name}: {row.made.reason}." for row in rows if not row.made.subject),
    ]
    return "\n".join(lines) + "\n"


def line(row: Row, names: Sequence[str]) -> str:
    return f"| {row.artifact} | {row.made.mutant.name} | {' | '.join(row.cells.get(n) or 'not run' for n in names)} |"


if __name__ == "__main__":
    sys.exit(main())
