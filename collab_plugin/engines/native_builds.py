"""Engines that `make native` put into the user's cache: adapters look here after what the user names or installed."""

from __future__ import annotations

import os
from pathlib import Path


def native_builds(kind: str) -> tuple[Path, ...]:
    """Folders of ``kind`` ("llama", "ollama", "vllm") in $XDG_CACHE_HOME/collab-plugin, newest first.

    Unfinished ones, which the scripts in tests/native call ``part.*``, are left out.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "collab-plugin" / kind
    found = [path for path in base.glob("*") if path.is_dir() and not path.name.startswith("part.")]
    return tuple(sorted(found, key=lambda path: path.stat().st_mtime, reverse=True))
