"""Which Ollama will do."""

from __future__ import annotations

import re

from collab_plugin.errors import CollabError

OLDEST = "0.30.0"
"""The first that runs GGUF files through llama-server (ollama#16031), with all that is done here."""


def refuse_old(version: str, url: str) -> None:
    """CollabError when ``version``, as /api/version gives it, is older than OLDEST or no version."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        raise CollabError(f"{url} answers, but is no Ollama server (its version is {version[:80]!r})")
    numbers = tuple(map(int, found.groups()))
    # `go install` without -ldflags makes a 0.0.0.
    if numbers != (0, 0, 0) and numbers < tuple(map(int, OLDEST.split("."))):
        raise CollabError(
            f"Ollama {version} at {url} is too old: {OLDEST} is the first that runs models through llama-server; "
            "update it"
        )
