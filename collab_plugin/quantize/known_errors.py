"""Errors that were measured before, in a file of the user's cache folder, so that another plan of a model is quick."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_MOST = 500_000
_WAIT = 10.0
"""Seconds to wait for another process that writes."""
_TABLE = "CREATE TABLE IF NOT EXISTS errors (key BLOB PRIMARY KEY, error REAL NOT NULL) WITHOUT ROWID"

_FIND = "SELECT error FROM errors WHERE key = ? AND typeof(error) = 'real' AND error BETWEEN 0 AND 1e30"
"""What no measurement gives is not known."""


def error_key(kernels: str, kind: str, parts: Iterable[tuple[F32, F32 | None]]) -> bytes:
    """What a relative error depends on, as a digest: version of the kernels, type, and of each sample its values
    f32[r, c] and its importance vector f32[c] or None."""
    digest = hashlib.sha256(f"1 {kernels} {kind}".encode())
    for values, vector in parts:
        digest.update(str(values.shape).encode())
        digest.update(np.ascontiguousarray(values).data)
        digest.update(b"-" if vector is None else np.ascontiguousarray(vector).data)
    return digest.digest()


class KnownErrors:
    """Relative errors by `error_key`. A file that cannot be read or written is as good as none: errors are then
    measured. Nothing in it can be out of date, because a key says all that its error depends on.

    ``most``: errors that are kept; when there are more, the file starts anew.
    """

    def __init__(self, path: Path, most: int = _MOST) -> None:
        self._path, self._most = path, most

    def find(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Return the errors of those ``keys`` that are known."""
        if not self._path.exists():
            return {}
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open()) as file:
            rows = (file.execute(_FIND, (key,)).fetchone() for key in keys)
            return {key: float(row[0]) for key, row in zip(keys, rows, strict=True) if row is not None}
        return {}

    def keep(self, errors: Mapping[bytes, float]) -> None:
        """Add ``errors``."""
        with contextlib.suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as file, file:
                file.execute(_TABLE)
                (count,) = file.execute("SELECT COUNT(*) FROM errors").fetchone()
                if count + len(errors) > self._most:
                    file.execute("DELETE FROM errors")
                file.executemany("INSERT OR REPLACE INTO errors VALUES (?, ?)", errors.items())

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_WAIT)
