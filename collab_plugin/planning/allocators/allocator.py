"""What a bit allocator is: one choice a tensor, least total cost, total bytes within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One candidate type of one tensor: exact bytes in the file (padding included) and cost >= 0."""

    type: str
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Item:
    """A tensor (by GGUF name) with its candidate types, in ascending bytes."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Allocator:
    """``solve(items, budget)`` returns the chosen index by item name.

    The sum of the chosen ``nbytes`` never exceeds ``budget``; raises ValueError when even the
    smallest choices do not fit (callers check first and back off).
    """

    name: str
    description: str
    solve: Callable[[Sequence[Item], int], Mapping[str, int]]
