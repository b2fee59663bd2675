"""Which family of models a config is of, for vLLM's model classes."""

from __future__ import annotations

from collections.abc import Sequence

from collab_plugin.checkpoint.families.family import Family, family_of
from collab_plugin.plugins.manager import known_families

_ELSE = "load format collab cannot prune it; it prunes {known}"


def family_for_vllm(classes: Sequence[str], model: str) -> Family:
    """Return the family of a config's ``architectures``; CollabError naming those that are known."""
    return family_of(classes, [family for family in known_families() if family.vllm], model, _ELSE)
