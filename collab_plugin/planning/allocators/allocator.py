"""What a bit allocator is: one choice a tensor, least total cost, total bytes within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from collab_plugin.planning.options import Option, OptionValue, option_values


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
    """``solve(items, budget, options)`` returns the chosen index by item name.

    The sum of the chosen ``nbytes`` never exceeds ``budget``; raises ValueError when even the
    smallest choices do not fit (callers check first and back off). ``options`` declares what it can be told; every
    option's value comes with each call.
    ``follows_frontier``: its cost is within one step of the least there is at a budget (frontier.py), so that the
    search need not solve every candidate.
    """

    name: str
    description: str
    solve: Callable[[Sequence[Item], int, Mapping[str, OptionValue]], Mapping[str, int]]
    options: tuple[Option, ...] = ()
    follows_frontier: bool = False

    def values(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Value of every option, ``given`` or its default; CollabError for what is not an option of it."""
        return option_values(self.options, given, f"allocator {self.name}")
