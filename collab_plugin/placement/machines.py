"""Machines: the memories that a model may lie in, and how fast they are read."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import psutil

from collab_plugin.errors import CollabError

MemoryKind = Literal["gpu", "host", "unified"]
_BLOCK = 64 * 2**20
_READINGS = 3


@dataclass(frozen=True)
class MachineMemory:
    """``bytes`` installed, the share of them that programs may use, and ``bandwidth`` in bytes a second.

    "unified": processor and graphics share it.
    """

    name: str
    kind: MemoryKind
    bytes: int
    usable: float
    bandwidth: float

    @property
    def available(self) -> int:
        """Bytes that a model may take."""
        return int(self.bytes * self.usable)


@dataclass(frozen=True)
class Machine:
    """``tiers`` from the fastest to the slowest. ``measured``: whether bandwidth was, else it is the maker's figure."""

    name: str
    title: str
    tiers: tuple[MachineMemory, ...]
    note: str
    measured: bool

    @property
    def available(self) -> int:
        """Bytes that a model may take, over all tiers."""
        return sum(tier.available for tier in self.tiers)


@cache
def known_machines() -> Mapping[str, Machine]:
    """The machines of machines.toml, by name."""
    table = tomllib.loads((files("collab_plugin.placement") / "machines.toml").read_text("utf-8"))
    return {
        name: Machine(name, m["title"], tuple(MachineMemory(**tier) for tier in m["tiers"]), m["note"], False)
        for name, m in table.items()
    }


def machine_named(name: str) -> Machine:
    """CollabError naming those that are known."""
    machines = known_machines()
    if name not in machines:
        raise CollabError(f"`machine` {name!r} is not known; known: {', '.join(machines)}, or give `memory`")
    return machines[name]


def this_machine(memory: int | None, threads: int) -> Machine:
    """The computer that this runs on: its memory, or ``memory`` bytes of one, and the bandwidth of its processor.

    Graphics cards are not looked at.
    """
    installed = psutil.virtual_memory().total if memory is None else memory
    tier = MachineMemory("memory", "host", installed, 1.0, read_bandwidth(threads))
    return Machine("this", "this machine's processor", (tier,), "", True)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read from memory: the best of three rounds over 64 MiB each, which no
    cache of a core holds. One thread is timed by its own time, so that other work does not count."""
    blocks = [np.ones(_BLOCK // 8, np.int64) for _ in range(threads)]
    if threads == 1:
        np.max(blocks[0])  # the pages are there
        return max(_BLOCK / _own_seconds(blocks[0]) for _ in range(_READINGS))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, blocks))  # the pages are there, and the threads
        return max(_one_reading(pool, blocks) for _ in range(_READINGS))


def _own_seconds(block: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    start = time.thread_time()
    np.max(block)
    return time.thread_time() - start


def _one_reading(pool: ThreadPoolExecutor, blocks: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> float:
    start = time.perf_counter()
    list(pool.map(np.max, blocks))
    return len(blocks) * _BLOCK / (time.perf_counter() - start)
