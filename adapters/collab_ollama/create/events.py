"""A stream read in a thread of its own, so that Ctrl-C does not cut the connection."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from collab_ollama.server.client import Event


class Events:
    """Iterates over ``source``, which a thread reads to its end whatever happens to the reader."""

    def __init__(self, source: Iterable[Event]) -> None:
        self._queue: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._thread.start()

    def _read(self, source: Iterable[Event]) -> None:
        try:
            for event in source:
                self._queue.put(event)
        except BaseException as error:  # handed to the reader, whatever it is
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[Event]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def drain(self) -> None:
        """Wait for the end of the stream; what comes is not looked at."""
        self._thread.join()
