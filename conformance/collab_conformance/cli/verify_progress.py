"""Progress of a verification: one bar or line a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from collab_plugin.cli import progress
from collab_plugin.progress import Advance, track


class ShownProgress:
    """Called with the target's name, what is being checked, and checks done and in all."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = progress.shown()
        self._target: str | None = None
        self._report: Advance | None = None

    def __call__(self, target: str, check: str, done: int, total: int) -> None:
        if target != self._target or self._report is None:
            self._stack.close()
            self._target = target
            self._report = self._stack.enter_context(track(self._listener, f"verifying {target}", total, "checks"))
        self._report(done, total)


@contextmanager
def shown() -> Iterator[ShownProgress]:
    """Yield the function to call; ends the last bar."""
    with ExitStack() as stack:
        yield ShownProgress(stack)
