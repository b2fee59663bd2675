"""How far a long step is: events for whoever listens. Nothing is drawn here: cli/progress.py does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

SECONDS_BETWEEN = 0.1
"""A step tells of itself at most so often, but always at its beginning and its end."""


@dataclass(frozen=True)
class Progress:
    """One event of a step: ``done`` of ``total`` ``unit`` (total None: not known yet) after ``seconds``.

    ``finished`` marks the last event, which comes also when the step failed. ``read``: bytes read from disks meanwhile,
    where the step counts them.
    """

    step: str
    done: float
    total: float | None
    unit: str
    seconds: float
    finished: bool
    read: int | None = None

    @property
    def rate(self) -> float:
        """Units a second since the step began; 0 at its beginning."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None where the total or the rate is not known."""
        if self.total is None or self.rate <= 0:
            return None
        return max(self.total - self.done, 0.0) / self.rate

    @property
    def complete(self) -> bool:
        """All of a known total is done."""
        return self.total is not None and self.done >= self.total

    def __str__(self) -> str:
        """One plain line, as `progress=print` shows it."""
        if not self.done and not self.finished:
            return f"{self.step} ..."
        of = f" of {self.total:,.0f}" if self.total is not None else ""
        # A step that is measured in seconds has no rate worth telling.
        rate = "" if self.unit == "s" else f", {self.rate:,.1f} {self.unit}/s"
        tail = ""
        if self.complete or self.finished:
            tail = f", {self.seconds:.1f} s"
        elif self.seconds_left is not None:
            tail = f", {self.seconds_left:.0f} s left"
        if self.read:
            tail = f", {self.read / 1e9:,.1f} GB read{tail}"
        return f"{self.step}: {self.done:,.0f}{of} {self.unit}{rate}{tail}"


OnProgress = Callable[[Progress], None]
"""Gets every event, in the thread that does the work. `print` is one."""


class Advance(Protocol):
    """``advance(done)``, or ``advance(done, total)`` when the total becomes known or changes."""

    def __call__(self, done: float, total: float | None = None) -> None: ...


def silent(event: Progress) -> None:
    """An `OnProgress` that shows nothing: the default everywhere."""


def untold(done: float, total: float | None = None) -> None:
    """An `Advance` that tells nobody, for steps inside one that is told."""


@contextmanager
def track(
    listener: OnProgress,
    step: str,
    total: float | None = None,
    unit: str = "",
    read: Callable[[], int | None] = lambda: None,
) -> Iterator[Advance]:
    """Tell ``listener`` of a step while the with statement lasts. Yields what to call with the amount done so far.

    ``read``: gives the bytes that were read from disks since the step began, None where that is not counted.
    """
    start = told = time.monotonic()
    at, known = 0.0, total

    def event(finished: bool) -> Progress:
        return Progress(step, at, known, unit, time.monotonic() - start, finished, read())

    def advance(done: float, total: float | None = None) -> None:
        nonlocal at, known, told
        at, known = done, known if total is None else total
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN:
            told = now
            listener(event(False))

    listener(event(False))
    try:
        yield advance
    finally:
        listener(event(True))
