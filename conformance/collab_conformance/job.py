"""What the parent asks a target's child process to measure, and what comes back, one JSON line each."""

from __future__ import annotations

from dataclasses import dataclass

from collab_conformance.report.document import Level


@dataclass(frozen=True)
class Subject:
    """A GGUF artifact and the pack that it is held to, as paths; ``name`` is the artifact's in the report."""

    name: str
    artifact: str
    pack: str


@dataclass(frozen=True)
class Job:
    """``target`` as a provider's `find` names it; ``levels`` in their order; ``short`` as `Report.short`;
    ``threads`` of the engine; ``seed`` of the kernels' random operands."""

    target: str
    subjects: tuple[Subject, ...]
    levels: tuple[Level, ...]
    short: bool
    threads: int
    seed: int


@dataclass(frozen=True)
class Begun:
    """The child started a check: when it dies, this is what it died in."""

    level: Level
    name: str
    artifact: str


@dataclass(frozen=True)
class Measured:
    """A figure, not judged: limits are the parent's. ``value`` None: skipped for ``reason`` when ``skipped``,
    else failed for it (the engine refused, NaN, wrong shape)."""

    level: Level
    name: str
    artifact: str
    value: float | None
    reason: str
    skipped: bool
