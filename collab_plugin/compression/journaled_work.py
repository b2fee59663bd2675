"""Pieces of work in many threads, each recorded in a journal when what it wrote is on the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from collab_plugin.compression.journal import Journal
from collab_plugin.progress import Advance, take_up

SYNC_SECONDS = 5.0


class JournaledWork:
    """Carries out what ``journal`` does not have as done.

    ``one`` does piece number i, from any thread, and returns the checksum of what it wrote; ``values``: how much each
    piece counts in ``report``; ``sync`` waits until what was written is on the disk.
    """

    def __init__(
        self,
        one: Callable[[int], str],
        values: Sequence[int],
        sync: Callable[[], None],
        journal: Journal,
        report: Advance,
    ) -> None:
        self.one, self.values, self.sync, self.journal, self.report = one, values, sync, journal, report
        self._written: dict[int, str] = {}
        self._done = sum(values[i] for i in journal.done)
        self._synced = time.monotonic()

    @property
    def todo(self) -> list[int]:
        """Numbers of the pieces that are not done."""
        return [i for i in range(len(self.values)) if i not in self.journal.done]

    def done_by(self, finished: Iterable[Iterable[tuple[int, str]]]) -> None:
        """Record what others do: (piece, checksum) of what they wrote; on any error keep that, and raise it."""
        take_up(self.report, self._done, sum(self.values))
        try:
            for some in finished:
                for index, sum_ in some:
                    self._finish(index, sum_)
        finally:
            self._sync()

    def all(self, threads: int) -> None:
        """Do every unfinished piece; on any error stop at once, keep what is synced, and raise it."""
        take_up(self.report, self._done, sum(self.values))
        todo = iter(self.todo)
        with ThreadPoolExecutor(threads) as pool:
            running: dict[Future[str], int] = {}
            try:
                while True:
                    while len(running) < 2 * threads and (index := next(todo, None)) is not None:
                        running[pool.submit(self.one, index)] = index
                    if not running:
                        break
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        self._finish(running.pop(future), future.result())
            finally:
                for future in running:
                    future.cancel()
                wait(running)
                self._sync()

    def _finish(self, index: int, sum_: str) -> None:
        self._written[index] = sum_
        self._done += self.values[index]
        self.report(self._done)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        if self._written:
            self.sync()
            self.journal.add(self._written)
            self._written = {}
        self._synced = time.monotonic()
