"""A routing trace: which experts every token chose in every layer, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

I16 = NDArray[np.int16]
NONE = -1
"""Marks a choice that is not there."""


@dataclass(frozen=True)
class RoutingTrace:
    """``chosen`` i16[tokens, layers, k]: ids of the experts, `NONE` where there is none. ``layers``: their numbers.
    ``experts`` a layer. ``starts``: index of the first token of each sequence, ``labels`` what each is ("" unknown).
    ``model_id``: checkpoint.identity.model_id of the model whose numbers these are, None where it is not known."""

    chosen: I16
    layers: tuple[int, ...]
    experts: int
    starts: tuple[int, ...] = (0,)
    labels: tuple[str, ...] = ("",)
    model_id: str | None = None

    @property
    def tokens(self) -> int:
        return len(self.chosen)

    @property
    def requests(self) -> int:
        """Choices in all."""
        return int((self.chosen != NONE).sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """i64[layers, experts]: how often each was chosen."""
        rows = [np.bincount(self.chosen[:, at][self.chosen[:, at] != NONE], minlength=self.experts)
                for at in range(len(self.layers))]  # fmt: skip
        return np.stack(rows) if rows else np.zeros((0, self.experts), np.int64)

    def sequence_numbers(self, label: str | None = None) -> list[int]:
        """Of all sequences, or of those with ``label``."""
        return [at for at, own in enumerate(self.labels) if label is None or own == label]

    def sequences(self, numbers: list[int]) -> RoutingTrace:
        """These sequences alone, in this order."""
        ends = (*self.starts[1:], self.tokens)
        parts = [self.chosen[self.starts[at] : ends[at]] for at in numbers]
        lengths = [len(part) for part in parts]
        starts = tuple(np.cumsum([0, *lengths[:-1]]).tolist()) if parts else ()
        chosen = np.concatenate(parts) if parts else self.chosen[:0]
        return replace(self, chosen=chosen, starts=starts, labels=tuple(self.labels[at] for at in numbers))

    def renumbered(self, kept: dict[int, tuple[int, ...]]) -> RoutingTrace:
        """As a model that kept these experts of each layer, in this order, would number them; choices of others are
        `NONE`. What a pruned model would have chosen in their place is not known."""
        most = max((len(ids) for ids in kept.values()), default=self.experts)
        chosen = self.chosen.copy()
        for at, layer in enumerate(self.layers):
            if layer in kept:
                new = np.full(self.experts + 1, NONE, np.int16)  # the last stands for NONE
                new[list(kept[layer])] = np.arange(len(kept[layer]))
                chosen[:, at] = new[self.chosen[:, at]]
        return replace(self, chosen=chosen, experts=most, model_id=None)
