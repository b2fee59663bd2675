"""A folder for files as large as the model, which nobody has to clean up: not even after a kill.

It lies in the user's cache folder and is locked for as long as its process lives. Whoever makes the next one removes
those whose lock is free: their processes are gone.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collab_plugin.compression.as_gguf import cache_folder
from collab_plugin.compression.whole_output import only_run
from collab_plugin.errors import CollabError


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in the user's cache, removed at the end; CollabError when it cannot be made."""
    place = cache_folder("scratch")
    _sweep(place)
    folder = place / f"{os.getpid()}-{secrets.token_hex(4)}"
    with only_run(folder):  # locked before it is there, so that no sweep ever takes it for a left one
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(place: Path) -> None:
    for folder in place.iterdir():
        if not folder.is_dir():
            continue
        try:
            with only_run(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except CollabError:  # its process lives
            continue
