"""Progress of long steps: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Report(Protocol):
    """``report(done)`` or ``report(done, total)`` when the total becomes known or changes."""

    def __call__(self, done: float, total: float | None = None) -> None: ...


def silent(done: float, total: float | None = None) -> None:
    """A `Report` that shows nothing, for steps inside one that is shown."""


@contextmanager
def track(title: str, total: float | None = None, unit: str = "") -> Iterator[Report]:
    """Show how far a step is, on stderr. Yields the function to call with the amount done so far."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        ) as bar:
            task = bar.add_task(title, total=total, rate="")
            start = time.monotonic()

            def show(done: float, total: float | None = None) -> None:
                rate = done / max(time.monotonic() - start, 1e-9)
                bar.update(task, completed=int(done), total=total, rate=f"{rate:,.1f} {unit}/s")

            yield show
        return
    yield _plain(title, total, unit)


def _plain(title: str, total: float | None, unit: str, every: float = 10.0) -> Report:
    """Print a line at the start, every ten seconds, and at the end."""
    start = time.monotonic()
    state: dict[str, float | None] = {"last": start, "total": total}
    print(f"{title} ...", file=sys.stderr, flush=True)

    def show(done: float, total: float | None = None) -> None:
        if total is not None:
            state["total"] = total
        now, whole = time.monotonic(), state["total"]
        finished = whole is not None and done >= whole
        if not finished and now - (state["last"] or 0) < every:
            return
        state["last"] = now
        rate = done / max(now - start, 1e-9)
        left = f", {max(whole - done, 0) / rate:.0f} s left" if whole and rate else ""
        of = f" of {whole:,.0f}" if whole is not None else ""
        tail = f", {now - start:.1f} s" if finished else left
        print(f"{title}: {done:,.0f}{of} {unit}, {rate:,.1f} {unit}/s{tail}", file=sys.stderr, flush=True)

    return show
