"""How far a long step is: events for whoever listens. Nothing is drawn here: cli/progress.py does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

SECONDS_BETWEEN = 0.1
"""A step tells of itself at most so often, but always at its beginning and its end."""


@dataclass(frozen=True)
class Progress:
    """One event of a step: ``done`` of ``total`` ``unit`` (total None: not known yet) after ``seconds``.

    ``finished`` marks the last event, which comes also when the step failed. ``read``: bytes read from disks meanwhile,
    where the step counts them. ``earlier``: what of ``done`` an earlier run did, on which this one goes on.
    """

    step: str
    done: float
    total: float | None
    unit: str
    seconds: float
    finished: bool
    read: int | None = None
    earlier: float = 0.0

    @property
    def rate(self) -> float:
        """Units a second since the step began, without those of an earlier run; 0 at its beginning."""
        return (self.done - self.earlier) / self.seconds if self.seconds > 0 else 0.0

    @property
    def taken_up(self) -> bool:
        """An earlier run's work was found, and nothing is done since."""
        return self.done == self.earlier > 0 and not self.finished

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
        if self.taken_up:
            return f"{self.step}: goes on after {self.done:,.0f}{of} {self.unit} of an earlier run"
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


@runtime_checkable
class TakesUp(Protocol):
    """An `Advance` that tells an earlier run's work apart: `track` yields one."""

    def take_up(self, done: float, total: float) -> None: ...


def take_up(advance: Advance, done: float, total: float) -> None:
    """Tell ``advance``, before any work, that an earlier run has done ``done`` of ``total``, maybe nothing."""
    if isinstance(advance, TakesUp):
        advance.take_up(done, total)
    else:
        advance(done, total)


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
    under_way = _Step(listener, step, total, unit, read)
    under_way.tell(finished=False)
    try:
        yield under_way
    finally:
        under_way.tell(finished=True)


class _Step:
    """An `Advance` and `TakesUp` that tells a listener."""

    def __init__(
        self, listener: OnProgress, step: str, total: float | None, unit: str, read: Callable[[], int | None]
    ) -> None:
        self._listener, self._step, self._total, self._unit, self._read = listener, step, total, unit, read
        self._done = self._earlier = 0.0
        self._start = self._told = time.monotonic()

    def __call__(self, done: float, total: float | None = None) -> None:
        self._done, self._total = done, self._total if total is None else total
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN:
            self._told = now
            self.tell(finished=False)

    def take_up(self, done: float, total: float) -> None:
        self._earlier = done
        if done > 0:
            self._done, self._total = done, total
            self.tell(finished=False)
        else:
            self(done, total)

    def tell(self, *, finished: bool) -> None:
        seconds = time.monotonic() - self._start
        self._listener(
            Progress(self._step, self._done, self._total, self._unit, seconds, finished, self._read(), self._earlier)
        )
