"""Where the ollama program is: one answer for commands, the engine and the target of `verify`."""

from __future__ import annotations

import shutil
from pathlib import Path

from collab_plugin.engines.program_settings import Setting, configured
from collab_plugin.errors import CollabError

OLLAMA = Setting("ollama", "COLLAB_OLLAMA")


def find_ollama(given: str | None = None) -> Path:
    """Return the program: ``given``, what ``COLLAB_OLLAMA`` or the settings name, or the one on the PATH.

    CollabError when what is named is no program, and when there is none.
    """
    named = configured(OLLAMA) if given is None else None
    name = given or (named.value if named else "ollama")
    found = shutil.which(name)
    if found is not None:
        return Path(found).resolve()
    if named is not None:
        raise CollabError(f"{named.source} is {name}, which is no program; give the path of Ollama's")
    raise CollabError(
        f"no Ollama program {name!r}: install it (https://ollama.com/download), or say where it is: "
        f"{OLLAMA.how_to_give()}"
    )
