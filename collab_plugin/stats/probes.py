"""What probing measured; kept in the stats file, so that a second plan costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TypeProbe:
    """Mean KL divergence (nats) against the original when only these tensors were quantized.

    ``types`` by tensor name; ``error``: sum of their relative errors as method.md §5 defines them.
    """

    types: Mapping[str, str]
    error: float
    kld: float
    stderr: float


@dataclass(frozen=True)
class PruneProbe:
    """Mean KL divergence (nats) against the original when experts were pruned and nothing quantized.

    ``rule`` names criterion, its options and the group policy: figures of another rule do not count.
    """

    rule: str
    expert_count: int
    experts_used: int
    kld: float
    stderr: float


@dataclass(frozen=True)
class Probes:
    """All probes of one model on one text: ``texts`` (file names), windows of ``ctx``, ``tokens`` scored.

    ``text_sha256``: of the texts' bytes, one after the other; figures on another text do not count.
    """

    texts: tuple[str, ...]
    text_sha256: str
    ctx: int
    tokens: int
    engine: str
    types: tuple[TypeProbe, ...] = ()
    prunes: tuple[PruneProbe, ...] = ()
