"""The worst correct figures of every target here, beside their limits: where limits.json comes from.

    python conformance/measure_limits.py [--target llamacpp:cpu] [--report report.json] [--write]

Runs the suite's own artifacts in the full form, or reads reports of `verify --suite --json FILE.json`. Prints for
each rule the worst figure of the checks that it is the first to match. --write sets rules whose source begins with
"measured" to twice that figure, rounded up to two digits, with its place and date; rules whose source begins with
"loosest" get the loosest of the artifacts' own; rules with another source (an anchor) stay. Look at what a figure is
before a limit is raised: a wrong target would raise it too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collab_conformance.judge.limits import LIMITS_FILE, SHIPPED, LimitRule, first_rule, read_limits
from collab_conformance.report.report_file import read_report
from collab_conformance.report.verify_report import LEVELS, Check, TargetReport
from collab_conformance.run.job import title
from collab_conformance.run.verify_targets import verify

from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.json_document import to_plain
from collab_plugin.plugins.manager import registry

MEASURED, LOOSEST = "measured", "loosest"


@dataclass(frozen=True)
class Worst:
    """The figure farthest to the wrong side of those that a rule is about; None when there was none."""

    value: float
    where: str


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", action="append", help="only these (default: all that run here)")
    p.add_argument("--report", type=Path, action="append", default=[], help="read these instead of running")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--write", action="store_true", help="set the measured limits in limits.json")
    a = p.parse_args()
    targets = [t for path in a.report for t in read_report(path).targets] or run(a.target, a.threads)
    rules = read_limits()
    found = worst_of(rules, targets)
    for rule, worst in zip(rules, found, strict=True):
        print(line(rule, worst))
    for target, check in without_limit(rules, targets):
        print(f"no limit: {target.name} {title(check.artifact, check.name)} {check.value}")
    if a.write:
        renewed_rules = [renewed(rule, worst) for rule, worst in zip(rules, found, strict=True)]
        write([loosest(rule, renewed_rules) for rule in renewed_rules])
    return 0


def run(names: Sequence[str] | None, threads: int) -> list[TargetReport]:
    from collab_conformance.suite.suite_subjects import suite_subjects

    infos = [info for provider in registry().targets.values() for info in provider.find() if info.absent is None]
    report = verify(
        suite_subjects(),
        [info for info in infos if not names or info.name in names],
        levels=LEVELS,
        short=False,
        threads=threads,
        seed=0,
        limits=(),
        progress=lambda target, check, done, total: print(
            f"\r{target} {done}/{total} {check:70}", end="", file=sys.stderr
        ),
    )
    return list(report.targets)


def worst_of(rules: Sequence[LimitRule], targets: Sequence[TargetReport]) -> list[Worst | None]:
    """For each rule the worst figure of the checks that it is the first to match."""
    found: dict[int, Worst] = {}
    for target, check in measured(targets):
        index = first_rule(rules, target.name, check.artifact, check.name)
        if index is None or check.value is None:
            continue
        side = -1 if rules[index].bound == "at-least" else 1
        before = found.get(index)
        if before is None or side * check.value > side * before.value:
            found[index] = Worst(check.value, f"{title(check.artifact, check.name)} on {target.name}")
    return [found.get(index) for index in range(len(rules))]


def measured(targets: Sequence[TargetReport]) -> Iterator[tuple[TargetReport, Check]]:
    return ((target, check) for target in targets for check in target.checks if check.value is not None)


def without_limit(rules: Sequence[LimitRule], targets: Sequence[TargetReport]) -> Iterator[tuple[TargetReport, Check]]:
    """Figures that no rule is about."""
    return (
        (target, check)
        for target, check in measured(targets)
        if first_rule(rules, target.name, check.artifact, check.name) is None
    )


def proposed(rule: LimitRule, worst: Worst) -> float:
    """Twice the worst figure, of a share that should be 1 twice what it lacks, rounded to two digits outwards."""
    if rule.bound == "at-least":
        return 1.0 - rounded_up(2 * (1.0 - worst.value))
    return rounded_up(2 * worst.value)


def rounded_up(value: float) -> float:
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def renewed(rule: LimitRule, worst: Worst | None) -> LimitRule:
    if worst is None or not rule.source.startswith(MEASURED):
        return rule
    what = f"twice the worst correct figure, {worst.value:.2g} of {worst.where}"
    source = f"{MEASURED} {datetime.date.today():%Y-%m-%d}: {what}"
    return replace(rule, value=proposed(rule, worst), source=source)


def loosest(rule: LimitRule, rules: Sequence[LimitRule]) -> LimitRule:
    own = [r for r in rules if r.check.endswith(f"/{rule.check}") and r.bound == rule.bound]
    if not own or not rule.source.startswith(LOOSEST):
        return rule
    value = max(own, key=lambda r: -r.value if r.bound == "at-least" else r.value)
    return replace(rule, value=value.value, source=f"{LOOSEST} of the suite's artifacts, {value.check}")


def line(rule: LimitRule, worst: Worst | None) -> str:
    if worst is None:
        return f"{rule.check} on {rule.target}: limit {rule.value:g}; nothing was measured"
    return (
        f"{rule.check} on {rule.target}: limit {rule.value:g}, twice the worst {proposed(rule, worst):g}; "
        f"worst {worst.value:.3g}, {worst.where}"
    )


def write(rules: Sequence[LimitRule]) -> None:
    """One rule a line, so that a change shows as one."""
    head = f'{{\n "format": {json.dumps(LIMITS_FILE.name)},\n "version": {LIMITS_FILE.version},\n "limits": [\n'
    lines = ",\n".join("  " + json.dumps(to_plain(rule), ensure_ascii=False) for rule in rules)
    write_bytes(SHIPPED, f"{head}{lines}\n ]\n}}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
