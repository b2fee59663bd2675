"""The hash of a file, as plans record the documents that they were made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from collab_plugin.errors import CollabError


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as hexadecimal digits; CollabError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
