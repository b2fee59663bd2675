"""What tasks of measuring share: what a worker must see and have, and how it finds the texts."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.errors import CollabError


def on_shared(windows: Windows) -> Windows:
    """``windows`` with texts as workers in other folders find them."""
    return replace(windows, texts=tuple(text.resolve() for text in windows.texts))


def check_worker(engine: Engine, version: str, needed: Iterable[Path]) -> None:
    """CollabError, in a worker, where one of the files ``needed`` is not there or the engine is not ``version``."""
    where = f"on {socket.gethostname()}"
    for path in needed:
        if not path.exists():
            raise CollabError(f"{path} is not there {where}; workers read the model and the texts under the same paths")
    if (theirs := engine.version()) != version:
        raise CollabError(f"the engine {where} is {theirs}, here it is {version}: install the same one")
