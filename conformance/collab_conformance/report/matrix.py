"""Many machines' reports on one self-contained HTML page: nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collab_conformance.report.summary import (
    COLUMNS,
    SummaryRow,
    check_line,
    count_text,
    figure,
    figure_and_limit,
    rows_of,
    shown_verdict,
    used_columns,
)
from collab_conformance.report.verify_report import LEVELS, Check, Fidelity, Level, Report, TargetReport
from collab_conformance.report.verify_terminal import device_words, totals
from collab_plugin import __version__
from collab_plugin.reports.number_words import clean

TEMPLATE = "matrix.html.jinja"


@dataclass(frozen=True)
class Cell:
    """``kind`` colours it: a verdict, or "" for no judgement. ``tip``: the same with limit and source."""

    text: str
    limit: str
    kind: str
    tip: str


@dataclass(frozen=True)
class Line:
    """One row: a target of a machine on a group of artifacts. ``first``: the target's first row, which shows
    its ``verdict``."""

    first: bool
    machine: str
    target: str
    device: str
    group: str
    figures: tuple[Cell, ...]
    levels: tuple[Cell, ...]
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class MachineReports:
    """One report. ``targets`` with all their checks, for the details below the matrix."""

    name: str
    created: str
    short: bool
    totals: str
    versions: str
    report: Report
    targets: tuple[tuple[TargetReport, str, tuple[Cell, ...]], ...]


def matrix_page(reports: Sequence[Report]) -> str:
    """Return the whole page; ImportError without Jinja2 (cli/outputs.py checks)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("collab_conformance", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Reports come from anyone: names may hold escape codes and line breaks.
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [(report, rows_of(report)) for report in reports]
    columns = used_columns([row for _, found in rows for row in found])
    levels = tuple(level for level in LEVELS if any(level in row.levels for _, found in rows for row in found))
    fidelity: list[tuple[str, Fidelity]] = [(r.machine, f) for r in reports for f in r.fidelity]
    return environment.get_template(TEMPLATE).render(
        columns=[COLUMNS[i].title for i in columns],
        levels=levels,
        lines=[line for report, found in rows for line in _lines(report, found, columns, levels)],
        machines=[_machine(report) for report in reports],
        fidelity=fidelity,
        version=__version__,
    )


def _lines(report: Report, rows: Sequence[SummaryRow], columns: Sequence[int], levels: Sequence[Level]) -> list[Line]:
    lines = []
    last = None
    for row in rows:
        lines.append(
            Line(
                first=row.target is not last,
                machine=report.machine,
                target=row.target.name,
                device=device_words(row.target.device),
                group=row.group,
                figures=tuple(_figure(row.worst[i]) for i in columns),
                levels=tuple(_level(row, level) for level in levels),
                verdict=row.target.verdict,
                reasons=row.reasons,
            )
        )
        last = row.target
    return lines


def _figure(check: Check | None) -> Cell:
    if check is None or check.value is None:
        return Cell("–", "", "", "not measured")
    limit = (
        "" if check.limit is None else ("≤ " if check.limit.bound == "at-most" else "≥ ") + figure(check.limit.value)
    )
    source = "" if check.limit is None else f"; limit: {check.limit.source}"
    kind = "" if check.limit is None else shown_verdict(check)
    return Cell(figure(check.value), limit, kind, check_line(check) + source)


def _level(row: SummaryRow, level: Level) -> Cell:
    counts = row.levels.get(level)
    if not counts:
        return Cell("–", "", "", f"no checks of {level}")
    for kind in ("fail", "pass", "xfail", "skipped", "not-run"):
        if counts.get(kind):
            return Cell(count_text(counts), "", kind, f"{level}: {count_text(counts)}")
    return Cell("–", "", "", level)


def _machine(report: Report) -> MachineReports:
    targets = tuple(
        (target, device_words(target.device), tuple(_detail(check) for check in target.checks))
        for target in report.targets
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return MachineReports(report.machine, report.created, report.short, totals(report), versions, report, targets)


def _detail(check: Check) -> Cell:
    where = f"{check.artifact}: " if check.artifact else ""
    source = "" if check.limit is None else check.limit.source
    why = " · ".join(part for part in (check.reason, check.expected or "") if part)
    return Cell(
        f"{where}{check.name}", f"{figure_and_limit(check)}{f' · {why}' if why else ''}", shown_verdict(check), source
    )
