"""Progress on stderr: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from collab_plugin.progress import OnProgress, Progress

SECONDS_BETWEEN_LINES = 10.0


def shown() -> OnProgress:
    """What a command passes as ``progress``."""
    console = Console(stderr=True)
    return _Bars(console) if console.is_terminal else _Lines()


class _Bars:
    """One bar for each step that is under way; gone from the screen's live part when all have ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Progress) -> None:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=self._console,
            )  # fmt: skip
            self._bars.start()
        if event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(event.step, total=event.total, rate="")
        rate = event.unit if event.unit == "s" else f"{event.unit} {event.rate:,.1f} {event.unit}/s"
        if event.read:
            rate += f" {event.read / 1e9:,.1f} GB read"
        self._bars.update(self._tasks[event.step], completed=int(event.done), total=event.total, rate=rate)
        if event.finished:
            del self._tasks[event.step]
        if not self._tasks:
            self._bars.stop()
            self._bars = None


class _Lines:
    """A line when a step begins or goes on after an earlier run, one every ten seconds, and one when all is done."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, event: Progress) -> None:
        begun = event.step in self._last
        soon = begun and not event.finished and event.seconds - self._last[event.step] < SECONDS_BETWEEN_LINES
        if soon and not event.taken_up:
            return
        if not event.finished:
            self._last[event.step] = event.seconds
            print(event if begun else f"{event.step} ...", file=sys.stderr, flush=True)
            return
        self._last.pop(event.step, None)
        if event.complete:
            print(event, file=sys.stderr, flush=True)
