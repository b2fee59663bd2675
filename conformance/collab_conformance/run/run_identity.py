"""What a report says of its run: the artifacts with their packs, the machine, the versions."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from collab_conformance.pack.pack_document import Artifact, PackDocument
from collab_conformance.report.verify_report import ArtifactId
from collab_plugin import __version__
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.placement.placement_file import read_placement


def identify(name: str, found: Artifact, document: PackDocument) -> ArtifactId:
    """What the report says of an artifact and its pack."""
    recorder = " ".join(part for part in (document.recorder.name, document.recorder.device) if part)
    return ArtifactId(
        name,
        found.sha256,
        found.bytes,
        found.architecture,
        found.plan_fingerprint,
        document.tensors_sha256,
        recorder,
    )


def placement_words(path: Path) -> str:
    """The file's name, the policy that moves its experts, its hash; CollabError when it cannot be read."""
    experts = read_placement(path).experts
    policy = "" if experts is None else f", {experts.policy.name}"
    return f"{path.name}{policy}, sha256 {file_sha256(path)}"


def machine() -> str:
    """This machine in words: name, system, processor."""
    return ", ".join(part for part in (platform.node(), platform.platform(terse=True), platform.machine()) if part)


def versions() -> dict[str, str]:
    """What decides the parent's part of the figures."""
    return {
        "collab-plugin": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gguf": version("gguf"),
    }
