"""Text that the user gives: UTF-8 files."""

from __future__ import annotations

from pathlib import Path

from collab_plugin.errors import CollabError


def read_text(path: Path) -> str:
    """Read UTF-8 text; CollabError when there is none."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise CollabError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CollabError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise CollabError(f"{path} is empty")
    return text
