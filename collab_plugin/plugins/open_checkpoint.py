"""Open a model, whatever its format and wherever it lies."""

from __future__ import annotations

import os

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.files.model_address import model_files
from collab_plugin.checkpoint.files.model_files import LocalFiles
from collab_plugin.checkpoint.not_a_model import why_not
from collab_plugin.errors import CollabError


def open_checkpoint(model: str | os.PathLike[str]) -> Checkpoint:
    """Open the model at a path or an address (``hf://...``, ``s3://...``) with the first registered format that
    matches it."""
    from collab_plugin.plugins.manager import registry

    files = model_files(model)
    formats = registry().checkpoint_formats
    for candidate in formats.values():
        if candidate.matches(files):
            return candidate.open(files)
    if isinstance(files, LocalFiles) and (why := why_not(files.path)) is not None:
        raise CollabError(f"{files.address} is no model: {why}")
    known = "; ".join(f.description for f in formats.values())
    raise CollabError(f"{files.address} is no model in a known format ({known})")
