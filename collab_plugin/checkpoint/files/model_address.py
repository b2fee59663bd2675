"""From what the user gave to the files of a model."""

from __future__ import annotations

import os
from pathlib import Path

from collab_plugin.checkpoint.files.model_files import LocalFiles, ModelFiles


def model_files(model: str | os.PathLike[str]) -> ModelFiles:
    """The files at a path, or at an address: ``hf://organization/name[@revision]``, ``s3://bucket/folder``, and so on.

    CollabError when there is nothing, or it cannot be reached.
    """
    if not isinstance(model, str) or not is_address(model):
        return LocalFiles(Path(model))
    from collab_plugin.checkpoint.files.hub_files import SCHEME, HubFiles
    from collab_plugin.checkpoint.files.store_files import StoreFiles

    return HubFiles(model) if model.startswith(SCHEME) else StoreFiles(model)


def is_address(model: str) -> bool:
    """True for what is no path: it has a scheme in front."""
    return "://" in model
