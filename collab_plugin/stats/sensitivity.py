"""How much quantizing each part of a model, and pruning it, moved its output: the document `probe` writes.

Reading and writing: sensitivity_file.py. Page: docs/formats/sensitivity.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SENSITIVITY_VERSION = 3


@dataclass(frozen=True)
class GroupProbe:
    """Mean KL divergence (nats) against the original when only the products of these tensors were disturbed, as
    quantizing them to the same relative error does.

    ``error``: sum of their relative errors as method.md §5 defines them.
    """

    tensors: tuple[str, ...]
    error: float
    kld: float
    stderr: float


@dataclass(frozen=True)
class PruningProbe:
    """Mean KL divergence (nats) against the original when experts were never chosen and nothing else
    was disturbed.

    ``rule`` names criterion, its options and the group policy: figures of another rule do not count.
    """

    rule: str
    expert_count: int
    experts_used: int
    kld: float
    stderr: float


@dataclass(frozen=True)
class TogetherProbe:
    """Mean KL divergence (nats) against the original when all these tensors were disturbed at once.

    ``errors``: the relative error of each; ``inputs``: that of its inputs, which were rounded as processors do beside
    quantized tensors, where calibration saw them.
    """

    errors: Mapping[str, float]
    inputs: Mapping[str, float]
    kld: float
    stderr: float


@dataclass(frozen=True)
class Sensitivity:
    """All probes of one model on one text.

    ``model_id``: checkpoint.identity.model_id of the probed model. ``stats_sha256``: of the stats file whose
    importance matrix weighed errors and whose routing pruned. ``texts``: file names; ``text_sha256``: of their bytes,
    one after the other. Windows have ``ctx`` tokens and are evenly spread over the texts. Each probe of ``groups`` ran
    ``windows`` of them, of which ``tokens`` are scored; each of ``prunings`` and ``together`` ran ``level_windows``,
    which are more: those of groups are compared with each other, these say how much. ``tokens_run``: what all probes
    took, tokens of the undisturbed model included.
    ``engine``: its name and version.
    """

    model_id: str
    stats_sha256: str
    texts: tuple[str, ...]
    text_sha256: str
    ctx: int
    windows: int
    level_windows: int
    tokens: int
    tokens_run: int
    engine: str
    groups: tuple[GroupProbe, ...] = ()
    prunings: tuple[PruningProbe, ...] = ()
    together: tuple[TogetherProbe, ...] = ()

    @property
    def probed(self) -> frozenset[str]:
        """Names of the tensors that some probe disturbed."""
        return frozenset(name for probe in self.groups for name in probe.tensors)
