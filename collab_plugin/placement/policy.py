"""What a placement policy is: which experts lie in the fast memory at first, and which leave it as the model runs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
from collab_plugin.stats.stats import LayerRouting

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LayerUse:
    """What is known of a layer's experts before the model runs.

    ``layer``: its number. ``experts``: how many it has. ``routing``: what calibration saw of them, in this model's
    numbers (a pruned model's expert 0 is the first one kept); None where no stats file lies beside the plan.
    """

    layer: int
    experts: int
    routing: LayerRouting | None

    @property
    def heat(self) -> F64:
        """f64[experts]: share of the layer's choices that fell on each expert; alike where nothing is known."""
        total = 0 if self.routing is None else int(self.routing.count.sum())
        if self.routing is None or not total:
            return np.full(self.experts, 1 / self.experts)
        return np.asarray(self.routing.count / total, np.float64)


class Residency(ABC):
    """What a dynamic policy thinks of the experts of R layers with E experts each, step after step.

    A step is one pass through the model. Its experts are brought into the fast memory if they are not there, and where
    there is no room for them, the experts with the least `worth` leave, of equal ones that with the highest number;
    never one that the step itself uses. With a selective policy an expert comes in only where it is worth more than
    the one that leaves for it, and is else used from where it lies. Layers do not share room.
    """

    @abstractmethod
    def saw(self, chosen: Mask) -> None:
        """One more step: ``chosen`` bool[R, E]. A row without any choice is a layer that the step did not reach."""

    @property
    @abstractmethod
    def worth(self) -> F64:
        """f64[R, E]; looked at after `saw`."""


Dynamic = Callable[[F64, Mapping[str, float]], Residency]
"""From the expected number of choices a step, f64[R, E], zero where nothing is known, and the policy's parameters."""


@dataclass(frozen=True)
class PolicyParameter:
    """A number that a dynamic policy works with: its ``value``, and what that must be ``above`` and ``below``."""

    value: float
    above: float = -math.inf
    below: float = math.inf


@dataclass(frozen=True)
class PlacementPolicy:
    """``hot(use, number)`` returns ``number`` ids of experts that are in the fast memory when the model starts, those
    that are worth most first; the others are in slower memory.

    ``rooms(uses, total)``: how many of ``total`` experts each layer may keep there; None: all layers as many.
    ``dynamic``: makes what decides while the model runs; None: experts stay where they were at first.
    ``parameters``: what ``dynamic`` is given, by name. ``learns``: it looks at calibration; a dynamic
    policy that does not starts with an empty memory. ``selective``: see `Residency`.
    """

    name: str
    description: str
    hot: Callable[[LayerUse, int], Sequence[int]]
    rooms: Callable[[Sequence[LayerUse], int], Sequence[int]] | None = None
    dynamic: Dynamic | None = None
    parameters: Mapping[str, PolicyParameter] = field(default_factory=dict)
    learns: bool = True
    selective: bool = False

    @property
    def values(self) -> dict[str, float]:
        """Of the parameters."""
        return {name: parameter.value for name, parameter in self.parameters.items()}

    def told(self, values: Mapping[str, float]) -> PlacementPolicy:
        """The policy with these ``values`` of its parameters. CollabError for one that it has not, or out of bounds."""
        found = dict(self.parameters)
        for name, value in values.items():
            if name not in found:
                known = ", ".join(found) or "it has none"
                raise CollabError(f"placement policy {self.name!r} has no parameter {name!r}; known: {known}")
            told = replace(found[name], value=float(value))
            if not told.above < told.value < told.below:
                raise CollabError(
                    f"{name}={value:g} of placement policy {self.name!r}: give a number above {told.above:g} and below "
                    f"{told.below:g}"
                )
            found[name] = told
        return replace(self, parameters=found)


def hot_experts(policy: PlacementPolicy, use: LayerUse, number: int) -> list[int]:
    """Ask the policy; ids in ascending order. CollabError when its answer is not ``number`` experts of the layer."""
    return sorted(ranked_experts(policy, use, number))


def ranked_experts(policy: PlacementPolicy, use: LayerUse, number: int) -> list[int]:
    """Ask the policy; ids in its order. CollabError when its answer is not ``number`` experts of the layer."""
    ids = list(dict.fromkeys(int(expert) for expert in policy.hot(use, number)))
    if len(ids) != number or (ids and not 0 <= min(ids) <= max(ids) < use.experts):
        raise CollabError(
            f"placement policy {policy.name!r} chose {sorted(ids)} in layer {use.layer}, not {number} of its "
            f"{use.experts} experts: choose another, or mend the plugin"
        )
    return ids


def rooms_of(policy: PlacementPolicy, uses: Sequence[LayerUse], total: int) -> list[int]:
    """How many of ``total`` experts each layer keeps in the fast memory; at most all. CollabError for a policy that
    gives out more."""
    most = [use.experts for use in uses]
    if policy.rooms is None:
        each, more = divmod(total, max(len(uses), 1))
        found = [min(each + (index < more), experts) for index, experts in enumerate(most)]
    else:
        found = [int(room) for room in policy.rooms(uses, total)]
    wrong = len(found) != len(uses) or any(not 0 <= room <= experts for room, experts in zip(found, most, strict=False))
    if wrong or sum(found) > total:
        raise CollabError(
            f"placement policy {policy.name!r} gives {found} of {total} experts to {len(uses)} layers: choose another, "
            "or mend the plugin"
        )
    return found
