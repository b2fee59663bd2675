"""Tables that give each token its experts (DeepSeek-V4's hash-routed layers), after experts were dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError

Table = NDArray[np.int32]
"""Expert ids [tokens, experts a token uses]."""


def remapped(table: Table, kept: Sequence[int], experts: int, used: int) -> Table:
    """The table in the numbers of the experts ``kept`` of ``experts``, with ``used`` columns.

    What a token keeps of its experts comes first. The rest of its row are substitutes: dropped experts stand for kept
    ones in turn, so that all get about as many tokens more; one that the row has already gives way to the next.
    CollabError for ids that no expert has, and for more columns than there are experts or the table has.
    """
    if not 0 < used <= min(table.shape[1], len(kept)):
        raise CollabError(
            f"tokens of hash-routed layers have {table.shape[1]} experts each and {len(kept)} are kept: a token cannot "
            f"use {used}"
        )
    if table.size and not (table.min() >= 0 and table.max() < experts):
        raise CollabError(f"a table of hash-routed layers names experts that are none of {experts}")
    numbers = np.full(experts, -1, np.int32)
    numbers[list(kept)] = np.arange(len(kept), dtype=np.int32)
    dropped = np.flatnonzero(numbers < 0)
    substitutes = numbers.copy()
    substitutes[dropped] = np.arange(len(dropped), dtype=np.int32) % len(kept)
    # Stable: what is kept stays in its order.
    order = np.argsort(numbers[table] < 0, axis=1, kind="stable")
    wanted = np.take_along_axis(table, order, axis=1)[:, :used]
    found: Table = np.full(wanted.shape, -1, np.int32)
    for column in range(used):
        chosen = substitutes[wanted[:, column]]
        for _ in range(column):  # each of the columns before can be in the way once
            taken = (found[:, :column] == chosen[:, None]).any(axis=1)
            chosen = np.where(taken, (chosen + 1) % len(kept), chosen)
        found[:, column] = chosen
    return found
