"""What a report comes to: a few figures for each target and group of artifacts. Every way to show it starts here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collab_conformance.report.verify_report import LEVELS, Check, Level, Report, TargetReport, Verdict, verdict_of

_MOST_SINGLE = 3
"""With more artifacts than this they are grouped by architecture: a suite has a dozen."""


@dataclass(frozen=True)
class Column:
    """A figure to put side by side: the worst of the checks whose names begin with ``name``."""

    title: str
    level: Level
    name: str


COLUMNS = (
    Column("kernels NMSE", "kernels", "kernels.mul_mat"),
    Column("routing different", "routing", "routing.different"),
    Column("logits NMSE", "logits", "logits.nmse"),
    Column("mean KLD", "logits", "logits.mean_kld"),
    Column("same top-1", "logits", "logits.same_top1"),
    Column("KLD p99", "logits", "logits.kld_p99"),
)


@dataclass(frozen=True)
class SummaryRow:
    """``target`` on one ``group`` of artifacts ("" for checks without one): ``worst`` check of every column,
    None where it was not measured; ``levels``: verdicts counted; ``verdict``: of these checks alone, never
    better than the target's; ``reasons``: what failed or was skipped."""

    target: TargetReport
    group: str
    worst: tuple[Check | None, ...]
    levels: Mapping[Level, Mapping[str, int]]
    verdict: Verdict
    reasons: tuple[str, ...]


def rows_of(report: Report) -> list[SummaryRow]:
    """One row for each target and group, in the report's order; a target without checks has one row."""
    groups = _groups(report)
    found = []
    for target in report.targets:
        parts: dict[str, list[Check]] = {}
        for check in target.checks:
            parts.setdefault(groups.get(check.artifact, check.artifact), []).append(check)
        if not parts:
            found.append(SummaryRow(target, "", (None,) * len(COLUMNS), {}, target.verdict, reasons_of(target, ())))
        for group in sorted(parts, key=lambda name: (name != "", list(parts).index(name))):
            checks = parts[group]
            found.append(_row(target, group, checks))
    return found


def _groups(report: Report) -> dict[str, str]:
    """Name of an artifact -> its group."""
    if len(report.artifacts) <= _MOST_SINGLE:
        return {}
    counts = Counter(artifact.architecture for artifact in report.artifacts)
    return {a.name: f"{a.architecture} ({counts[a.architecture]} files)" for a in report.artifacts}


def _row(target: TargetReport, group: str, checks: Sequence[Check]) -> SummaryRow:
    levels = {
        level: Counter(shown_verdict(check) for check in checks if check.level == level)
        for level in LEVELS
        if any(check.level == level for check in checks)
    }
    worst = tuple(_worst(column, checks) for column in COLUMNS)
    verdict = verdict_of(checks)
    # One that died did not come to its later checks: what it has is no pass.
    if verdict == "pass" and target.verdict != "pass":
        verdict = target.verdict
    return SummaryRow(target, group, worst, levels, verdict, reasons_of(target, checks))


def _worst(column: Column, checks: Sequence[Check]) -> Check | None:
    mine = [c for c in checks if c.level == column.level and c.name.startswith(column.name) and c.value is not None]
    return max(mine, key=badness, default=None)


def badness(check: Check) -> tuple[float, float]:
    """Larger is worse: how much of its limit a figure uses up, 1 being all; then the figure itself."""
    value, limit = check.value, check.limit
    assert value is not None
    if limit is None:
        return (0.0, value)
    if limit.bound == "at-most":
        return (value / limit.value if limit.value else float(value > 0) * 2, value)
    # Of shares what counts is the distance from all: 0.97 uses up three fifths of a limit of 0.95.
    room = 1 - limit.value if limit.value < 1 else 0.0
    return ((1 - value) / room if room else float(value < limit.value) * 2, -value)


def shown_verdict(check: Check) -> str:
    """The check's verdict, or "xfail" for a failure that a file of expected failures names."""
    return "xfail" if check.verdict == "fail" and check.expected is not None else check.verdict


def reasons_of(target: TargetReport, checks: Sequence[Check]) -> tuple[str, ...]:
    """Failures first, then expected ones, then what was skipped, like reasons once with their number.

    The target's own reason comes where no check of it gives one."""
    failed = [f"FAIL {check_line(c)}" for c in checks if shown_verdict(c) == "fail"]
    expected = [f"expected failure: {check_line(c)} ({c.expected})" for c in checks if shown_verdict(c) == "xfail"]
    skipped: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        # One with a figure is held to no limit: it is shown, and nothing is missing.
        if check.verdict in ("skipped", "not-run") and check.value is None:
            skipped.setdefault((check.level, _general(check)), []).append(check.name)
    lines = [
        f"skipped {names[0] if len(set(names)) == 1 else f'{len(names)} checks of {level}'}: {reason}"
        for (level, reason), names in skipped.items()
    ]
    told = any(shown_verdict(check) == "fail" for check in target.checks)
    whole = [target.reason] if target.reason and not told else []
    return (*whole, *failed, *expected, *lines)


def _general(check: Check) -> str:
    """The reason without the ggml type that the check is about: twenty types have the same reason."""
    kind = check.name.rpartition(".")[2]
    return re.sub(rf"\b{re.escape(kind)}\b", "<type>", check.reason) if check.level == "kernels" else check.reason


def check_line(check: Check) -> str:
    """Name, figure, limit and reason of a check in words."""
    where = f"{check.artifact}: " if check.artifact else ""
    told = check.value is not None and check.limit is not None and not check.limit.holds(check.value)
    reason = f" ({check.reason})" if check.reason and not told else ""
    return f"{where}{check.name} {figure_and_limit(check)}{reason}".rstrip()


def figure_and_limit(check: Check) -> str:
    """ "3.1e-05, at most 0.002"; a dash without a figure."""
    text = "–" if check.value is None else figure(check.value)
    if check.limit is None:
        return text
    return f"{text}, {check.limit.bound.replace('-', ' ')} {figure(check.limit.value)}"


def figure(value: float) -> str:
    """Three significant digits; shares near 1 keep their distance from it: 0.99987."""
    if 0.99 < value < 1:
        return f"{value:.6f}".rstrip("0")
    return f"{value:.3g}"


def count_text(counts: Mapping[str, int]) -> str:
    """ "12 pass, 1 fail" in a fixed order."""
    order = ("fail", "xfail", "pass", "skipped", "not-run")
    return ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name))


def used_columns(rows: Sequence[SummaryRow]) -> list[int]:
    """Indices of the columns that at least one row fills."""
    return [i for i in range(len(COLUMNS)) if any(row.worst[i] is not None for row in rows)]
