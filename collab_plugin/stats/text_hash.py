"""Is this the same text? The hash of texts, as documents measured on them record it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


def texts_sha256(texts: Sequence[Path]) -> str:
    """Return the SHA-256, as hexadecimal digits, of the files' bytes one after the other."""
    digest = hashlib.sha256()
    for text in texts:
        with text.open("rb") as file:
            while data := file.read(2**20):
                digest.update(data)
    return digest.hexdigest()
