"""The baseline: one type for every tensor, the largest that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collab_plugin.allocate.allocator import Allocator, Item


def solve(items: Sequence[Item], budget: int) -> Mapping[str, int]:
    """Return, by item name, the index of the type given to all.

    A tensor that does not offer the type (row width, no importance matrix) takes the next larger one
    it offers, or else its largest. Types are ordered by the bytes the whole model would take.
    """
    names = {choice.type for item in items for choice in item.choices}
    reference = max(items, key=lambda item: len(item.choices), default=None)
    if reference is None:
        return {}
    size = {c.type: c.nbytes for c in reference.choices}
    density = {
        name: size[name] / _largest(reference) if name in size else _density(items, name) for name in names
    }
    fits = []
    for name in names:
        picks = {item.name: _nearest(item, name, density) for item in items}
        total = sum(item.choices[picks[item.name]].nbytes for item in items)
        cost = sum(item.choices[picks[item.name]].cost for item in items)
        if total <= budget:
            fits.append((total, -cost, name, picks))
    if not fits:
        raise ValueError(f"no single type fits {budget} bytes")
    return max(fits, key=lambda fit: fit[:3])[3]


def _largest(item: Item) -> int:
    return max(choice.nbytes for choice in item.choices)


def _density(items: Sequence[Item], name: str) -> float:
    """Bytes of ``name`` over those of the item's largest choice, from the first item that offers it."""
    for item in items:
        for choice in item.choices:
            if choice.type == name:
                return choice.nbytes / _largest(item)
    raise AssertionError(name)


def _nearest(item: Item, name: str, density: Mapping[str, float]) -> int:
    order = sorted(range(len(item.choices)), key=lambda i: (density[item.choices[i].type], item.choices[i].type))
    for index in order:
        choice = item.choices[index]
        if choice.type == name or density[choice.type] > density[name]:
            return index
    return order[-1]


UNIFORM = Allocator(
    "uniform", "one type for all tensors, the largest that fits: the baseline", solve, default_floors=False
)
