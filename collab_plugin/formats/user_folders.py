"""Folders of the user that programs keep things in."""

from __future__ import annotations

from pathlib import Path

NAME = "collab-plugin"


def cache_path() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/collab-plugin on Linux, or ~/.cache/...; it need
    not be there."""
    import platformdirs  # not at the top: what runs in a foreign Python imports formats, and asks for no folder

    return Path(platformdirs.user_cache_path(NAME, appauthor=False))
