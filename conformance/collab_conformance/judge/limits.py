"""Limits: what a figure must keep to, from a data file in which every number has its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from collab_conformance.report.verify_report import Bound, Limit
from collab_conformance.run.job import named
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat

SHIPPED = Path(__file__).with_name("limits.json")


@dataclass(frozen=True)
class LimitRule:
    """Globs over the check (`job.named`) and the target's name; ``source``: where ``value`` comes from, an anchor
    or a measurement with its date."""

    check: str
    target: str
    bound: Bound
    value: float
    source: str


@dataclass(frozen=True)
class LimitFile:
    limits: tuple[LimitRule, ...]


def _check(file: LimitFile) -> None:
    for index, rule in enumerate(file.limits):
        if not rule.source.strip():
            raise CollabError(f"$.limits[{index}].source is empty: say where the number comes from")


LIMITS_FILE = JsonFormat("collab-plugin limits", 1, LimitFile, 16 * 2**20, _check)


def read_limits(path: Path | None = None) -> tuple[LimitRule, ...]:
    """Read a limits file, the shipped one without ``path``; CollabError naming file and JSON path of a mistake."""
    return LIMITS_FILE.read(path or SHIPPED).limits


def first_rule(rules: Sequence[LimitRule], target: str, artifact: str, name: str) -> int | None:
    """Index of the first rule that is about a check on a target, None when none is."""
    for index, rule in enumerate(rules):
        if named(rule.check, artifact, name) and fnmatchcase(target, rule.target):
            return index
    return None


def limit_of(rules: Sequence[LimitRule], target: str, artifact: str, name: str) -> Limit | None:
    """The limit of a check on a target: the first rule that matches, None when none does."""
    index = first_rule(rules, target, artifact, name)
    return None if index is None else Limit(rules[index].bound, rules[index].value, rules[index].source)
