"""What the parent asks a target's child process to measure, and what comes back, one JSON line each."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from collab_conformance.report.verify_report import Level


@dataclass(frozen=True)
class Subject:
    """A GGUF artifact and the pack that it is held to, as paths; ``name`` is the artifact's in the report; ``short``
    whether the short form has it."""

    name: str
    artifact: str
    pack: str
    short: bool = True


@dataclass(frozen=True)
class Skip:
    """Checks not to run on this target, a glob as `named` has it, and why."""

    check: str
    reason: str


@dataclass(frozen=True)
class Job:
    """``target`` as a provider's `find` names it; ``levels`` in their order; ``short`` as `Report.short`;
    ``threads`` of the engine; ``seed`` of the kernels' random operands, which are kept in the folder
    ``scratch`` for the next target; ``placement``: the document that artifacts are loaded with."""

    target: str
    subjects: tuple[Subject, ...]
    levels: tuple[Level, ...]
    short: bool
    threads: int
    seed: int
    scratch: str
    skips: tuple[Skip, ...]
    placement: str | None = None


@dataclass(frozen=True)
class Begun:
    """The child started a check: when it dies, this is what it died in. ``done`` checks of ``total``, which
    grows when the kernels' types become known."""

    level: Level
    name: str
    artifact: str
    done: int
    total: int


@dataclass(frozen=True)
class MeasuredFigure:
    """A figure, not judged: limits are the parent's. ``value`` None: skipped for ``reason`` when ``skipped``,
    else failed for it (the engine refused, NaN, wrong shape)."""

    level: Level
    name: str
    artifact: str
    value: float | None
    reason: str
    skipped: bool


def title(artifact: str, name: str) -> str:
    """How reports name a check: "artifact/name", "name" without an artifact."""
    return f"{artifact}/{name}" if artifact else name


def named(glob: str, artifact: str, name: str) -> bool:
    """Whether ``glob`` of a limits or skips file means this check: by name for every artifact ("logits.*"), or
    by title ("tiny-q4/logits.*")."""
    return fnmatchcase(name, glob) or fnmatchcase(title(artifact, name), glob)
