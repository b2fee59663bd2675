"""The suite's artifacts as `verify --suite` takes them."""

from __future__ import annotations

from pathlib import Path

from collab_conformance.run.job import Subject
from collab_conformance.suite.manifest import HERE, read_suite


def suite_subjects(short: bool = False, folder: Path = HERE) -> tuple[Subject, ...]:
    """The suite's artifacts with their packs, those of the short form only when ``short``."""
    artifacts = read_suite(folder).artifacts
    return tuple(
        Subject(a.name, str(folder / a.name / f"{a.name}.gguf"), str(folder / a.name / "pack"), a.short)
        for a in artifacts
        if a.short or not short
    )
