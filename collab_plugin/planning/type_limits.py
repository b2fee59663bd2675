"""Smallest and largest type of a role, as the user sets them (--base, --floor, --ceiling)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, type_info
from collab_plugin.formats.tensor_names import Role

SMALLEST = "IQ1_S"
LARGEST = "F32"


@dataclass(frozen=True)
class Limits:
    """Smallest and largest type by role; roles without one may have any."""

    floors: Mapping[Role, str]
    ceilings: Mapping[Role, str]

    @classmethod
    def of(cls, base: str | None, floors: Mapping[str, str], ceilings: Mapping[str, str]) -> Limits:
        """``base``: of experts. CollabError for an unknown role or type, and for a floor above its ceiling."""
        low = {_role(role): type_info(kind).name for role, kind in floors.items()}
        if base is not None:
            low[Role.EXPERT] = type_info(base).name
        top = {_role(role): type_info(kind).name for role, kind in ceilings.items()}
        for role, kind in low.items():
            if role in top and _bits(kind) > _bits(top[role]):
                raise CollabError(f"the floor of {role} ({kind}) is above its ceiling ({top[role]})")
        return cls(low, top)

    def bounds(self, role: Role) -> tuple[str, str]:
        """Smallest and largest type of a role."""
        return self.floors.get(role, SMALLEST), self.ceilings.get(role, LARGEST)


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise CollabError(f"unknown role {name!r}; known: {', '.join(Role)}") from None


def _bits(kind: str) -> float:
    return TYPES[kind].bits_per_weight
