"""Open a model, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.not_a_model import why_not
from collab_plugin.errors import CollabError
from collab_plugin.formats.output_path import check_utf8


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open ``path`` with the first registered format that matches it."""
    from collab_plugin.plugins.manager import registry

    path = Path(path)
    check_utf8(path)
    if not path.exists():
        raise CollabError(f"{path} does not exist")
    formats = registry().checkpoint_formats
    for candidate in formats.values():
        if candidate.matches(path):
            return candidate.open(path)
    if (why := why_not(path)) is not None:
        raise CollabError(f"{path} is no model: {why}")
    known = "; ".join(f.description for f in formats.values())
    raise CollabError(f"{path} is no model in a known format ({known})")
