"""suite.json: what the suite holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import from_plain

HERE = Path(__file__).parent
MANIFEST = "suite.json"


@dataclass(frozen=True)
class SuiteArtifact:
    """``name``.gguf in the folder ``name``, with plan.json and pack/. Hashes in hex: of the GGUF and of the pack's
    tensors. ``short``: it is in the short form too."""

    name: str
    about: str
    model: str
    bytes: int
    sha256: str
    pack_sha256: str
    short: bool


@dataclass(frozen=True)
class Suite:
    """``kernels``: what quantized; ``artifacts`` in the order in which they are verified."""

    kernels: str
    artifacts: tuple[SuiteArtifact, ...]


def read_suite(folder: Path = HERE) -> Suite:
    """Read the suite in ``folder``; CollabError when it is not there."""
    path = folder / MANIFEST
    try:
        return from_plain(Suite, json.loads(path.read_bytes()))
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}; make it with conformance/make_suite.py") from None
    except ValueError as error:
        raise CollabError(f"{path} is not JSON: {error}") from None
