"""A model on the command line: a path or an address."""

from __future__ import annotations

from pathlib import Path

Model = str | Path
"""An address (``hf://organization/name``) as text, which a Path would shorten, or the path of a file or folder."""


def path(value: Model) -> Model:
    """As click's type of an argument; help shows its name. A first `~` is the user's home folder."""
    if "://" in str(value):
        return value
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{value}: there is no such user") from None


MODEL = path
