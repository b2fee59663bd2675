"""What is verified: the user's artifacts, each with the pack that it is held to."""

from __future__ import annotations

from pathlib import Path

from collab_conformance.pack.prompts import default_prompts
from collab_conformance.run.job import Subject
from collab_conformance.run.record_pack import record_reference
from collab_plugin.progress import OnProgress, silent


def artifact_subject(artifact: Path, pack: Path | None, scratch: Path, progress: OnProgress = silent) -> Subject:
    """``artifact`` with ``pack``, or with a pack of the reference that is made below the folder ``scratch``.

    CollabError where the reference cannot be computed: it says to record a pack.
    """
    if pack is None:
        pack = scratch / artifact.name
        record_reference(artifact, default_prompts(artifact), pack, progress)
    return Subject(artifact.name, str(artifact.resolve()), str(pack.resolve()))
