"""Keep what a native library writes to standard output out of a command's output."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT = 1


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Lose what is written to file descriptor 1 while the with statement lasts, by any thread.

    Python's own `contextlib.redirect_stdout` does not reach native code, and C keeps what it printed to a pipe in a
    buffer of its own: both are flushed before and after.
    """
    _flush()
    try:
        kept = os.dup(STDOUT)
    except OSError:  # no standard output at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDOUT)
        yield
        _flush()
    finally:
        os.dup2(kept, STDOUT)
        os.close(kept)
        os.close(nowhere)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    (ctypes.CDLL("ucrtbase") if os.name == "nt" else ctypes.CDLL(None)).fflush(None)
