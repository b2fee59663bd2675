"""What is relaxed, in which order, when a budget cannot hold.

1. Floors of roles other than experts fall to Q2_K.
2. The base type of the experts falls a type at a time to IQ1_S.
3. Floors of other roles fall to the smallest type.
The planner does this for every number of experts that it weighs, and compares what comes out.
What the user set (--floor, --base, --keep) is never relaxed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import SUPER_BLOCK, TYPES, type_info
from collab_plugin.formats.tensor_names import Role

SMALLEST = "IQ1_S"
LARGEST = "F32"
DEFAULT_BASE = "IQ2_XXS"
DEFAULT_FLOORS: Mapping[Role, str] = {
    Role.ATTENTION: "Q4_K",
    Role.SHARED_EXPERT: "Q4_K",
    Role.FFN: "Q4_K",
    Role.EMBEDDING: "Q2_K",
    Role.OUTPUT: "Q4_K",
}


@dataclass(frozen=True)
class Limits:
    """Smallest and largest type by role, and which of them are the user's."""

    floors: Mapping[Role, str]
    ceilings: Mapping[Role, str]
    fixed: frozenset[Role]

    @classmethod
    def open(cls) -> Limits:
        return cls({}, {}, frozenset())

    @classmethod
    def start(
        cls, base: str | None, floors: Mapping[str, str], ceilings: Mapping[str, str], *, guarded: Collection[Role]
    ) -> Limits:
        """The limits to begin with: the user's over the defaults, which there are for roles in ``guarded``.

        Defaults guard against sensitivities that nobody measured on this model; probes replace them.
        """
        given = {_role(role): type_info(kind).name for role, kind in floors.items()}
        if base is not None:
            given[Role.EXPERT] = type_info(base).name
        top = {_role(role): type_info(kind).name for role, kind in ceilings.items()}
        every: dict[Role, str] = {**DEFAULT_FLOORS, Role.EXPERT: DEFAULT_BASE}
        defaults = {role: kind for role, kind in every.items() if role in guarded}
        # A default floor above the user's ceiling gives way.
        low = {r: k for r, k in defaults.items() if r not in top or _bits(k) <= _bits(top[r])}
        for role, kind in given.items():
            if role in top and _bits(kind) > _bits(top[role]):
                raise CollabError(f"the floor of {role} ({kind}) is above its ceiling ({top[role]})")
        return cls({**low, **given}, top, frozenset(given))

    def bounds(self, role: Role) -> tuple[str, str]:
        return self.floors.get(role, SMALLEST), self.ceilings.get(role, LARGEST)


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise CollabError(f"unknown role {name!r}; known: {', '.join(Role)}") from None


def _bits(kind: str) -> float:
    return TYPES[kind].bits_per_weight


def next_limits(limits: Limits) -> tuple[Limits, str] | None:
    """Return the next weaker limits and what was relaxed; None when nothing is left to relax."""
    return _lower_others(limits, "Q2_K") or _lower_base(limits) or _lower_others(limits, SMALLEST)


def _lower_others(limits: Limits, target: str) -> tuple[Limits, str] | None:
    high = [
        role
        for role, kind in limits.floors.items()
        if role not in limits.fixed and role != Role.EXPERT and _bits(kind) > _bits(target)
    ]
    if not high:
        return None
    floors: dict[Role, str] = dict(limits.floors) | dict.fromkeys(high, target)
    return replace(limits, floors=floors), f"floor of {', '.join(sorted(high))} down to {target}"


def _lower_base(limits: Limits) -> tuple[Limits, str] | None:
    base = limits.floors.get(Role.EXPERT, SMALLEST)
    if Role.EXPERT in limits.fixed or base == SMALLEST:
        return None
    lower = max((k for k in SUPER_BLOCK if _bits(k) < _bits(base)), key=_bits)
    return replace(limits, floors={**limits.floors, Role.EXPERT: lower}), f"base type of experts down to {lower}"
