"""All mutants of an artifact, as files to verify against the right one's pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collab_conformance.mutants.change import write_changed
from collab_conformance.mutants.mutants import MUTANTS, Mutant, NotApplicableError
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.run.job import Subject
from collab_plugin.checkpoint.gguf import open_gguf


@dataclass(frozen=True)
class Made:
    """``subject`` None: the artifact cannot have the mutant, for ``reason``."""

    mutant: Mutant
    subject: Subject | None
    reason: str


def make_mutants(subject: Subject, folder: Path, mutants: Sequence[Mutant] = MUTANTS) -> list[Made]:
    """Write every mutant of ``subject`` that there is into ``folder``. Named "ARTIFACT+MUTANT", so that limits
    of the artifact hold."""
    checkpoint, pack = open_gguf(Path(subject.artifact)), read_pack(Path(subject.pack))
    made = []
    for mutant in mutants:
        path = folder / f"{subject.name}+{mutant.name}.gguf"
        try:
            write_changed(checkpoint, mutant.make(checkpoint, pack), path)
        except NotApplicableError as error:
            made.append(Made(mutant, None, str(error)))
        else:
            made.append(Made(mutant, Subject(path.stem, str(path), subject.pack), ""))
    return made
