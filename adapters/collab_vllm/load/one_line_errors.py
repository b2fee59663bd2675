"""A user's mistake ends vLLM's command with one line; in a program of the user's own it is an exception."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collab_plugin.errors import CollabError


@contextmanager
def one_line() -> Iterator[None]:
    """Print a CollabError without traceback and exit with 2 when this is vLLM's own command."""
    try:
        yield
    except CollabError as error:
        if not _is_vllm_command():
            raise
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_vllm_command() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = spec.name if spec is not None else Path(sys.argv[0]).name
    return name == "vllm" or name.startswith("vllm.entrypoints.")
