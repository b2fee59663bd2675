"""Short reads of a file far away come from blocks, and a block is fetched once however many threads want it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from collab_plugin.checkpoint.files.model_files import BLOCK, LOCKS, DistantFile
from collab_plugin.errors import CollabError

DATA = np.random.default_rng(0).integers(0, 256, (LOCKS + 2) * BLOCK + 100, np.uint8).tobytes()


class Slow(DistantFile):
    """Answers after a while, and keeps what it was asked for; the first time of ``broken`` not at all."""

    def __init__(self, broken: int = -1) -> None:
        super().__init__("far://away", len(DATA))
        self.asked: list[tuple[int, int]] = []
        self.broken = broken

    def fetch(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        time.sleep(0.02)
        if start == self.broken:
            self.broken = -1
            raise CollabError("the network is down")
        return DATA[start:stop]


def test_threads_share_blocks() -> None:
    file, random = Slow(), np.random.default_rng(1)
    # The second block and one that shares its lock, blocks beside, and the file's last bytes.
    starts = [*random.integers(BLOCK - 50, BLOCK + 50, 20), *[(LOCKS + 1) * BLOCK + 7] * 10, *[len(DATA) - 60] * 10]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda start: bytes(file.read(int(start), int(start) + 60)), starts))
    assert found == [DATA[start : start + 60] for start in starts]
    assert len(set(file.asked)) == len(file.asked)


def test_a_block_that_did_not_come_is_asked_for_again() -> None:
    file = Slow(broken=0)
    with pytest.raises(CollabError, match="the network is down"):
        file.read(0, 10)
    assert bytes(file.read(0, 10)) == DATA[:10]
