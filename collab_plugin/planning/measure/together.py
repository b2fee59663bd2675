"""Errors of all tensors at once, as plans of several sizes have them: what their costs come to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.measure.groups import coarse
from collab_plugin.quantize.rounded_inputs import BLOCKS
from collab_plugin.stats.sensitivity import GroupProbe
from collab_plugin.stats.stats import InputRounding

LEVELS = (0.0001, 0.001, 0.01, 0.15)
"""Nats that the costs of all tensors add up to: from what is hardly more than rounded inputs to what nobody wants."""
MOST_ERROR = 0.3
"""Relative error of a tensor at most, about IQ1_S's."""
_HALVINGS = 60


@dataclass(frozen=True)
class Together:
    """Relative errors by tensor, all put in at once, with the rounding of inputs that goes with quantized tensors."""

    errors: Mapping[str, float]
    rounded: Mapping[str, int]


def together_at_levels(checkpoint: Checkpoint, probes: Sequence[GroupProbe]) -> list[Together]:
    """One a level, smallest first; fewer where all errors at their most cost less. None before every coarse group of
    ``probes`` was measured.

    A plan that spends its bytes best has paid for every weight alike: another bit divides an error by about 4, so what
    it saves is in proportion to ω ε, and what it takes to the number of weights n. So ε = c n / ω, at most
    `MOST_ERROR`, with c such that Σ ω ε is the level.
    """
    kld = {frozenset(p.tensors): p.kld / p.error for p in probes if p.error > 0}
    groups = coarse(checkpoint)
    if any(frozenset(g.tensors) not in kld for g in groups):
        return []
    weights = {name: max(kld[frozenset(g.tensors)], 0.0) for g in groups for name in g.tensors}
    sizes = {name: checkpoint.tensors[name].n_elements for name in weights}
    most = sum(weights.values()) * MOST_ERROR
    found: list[Together] = []
    for level in LEVELS:
        if level >= most:
            break
        low, high = 0.0, MOST_ERROR * max(w / sizes[n] for n, w in weights.items())
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            cost = sum(w * error for w, error in _errors(weights, sizes, middle))
            low, high = (middle, high) if cost < level else (low, middle)
        errors = {n: e for n, (_, e) in zip(weights, _errors(weights, sizes, low), strict=True) if e > 0}
        blocks = {n: _block(checkpoint, checkpoint.tensors[n]) for n in errors}
        found.append(Together(errors, {n: block for n, block in blocks.items() if block}))
    return found


def errors_of_inputs(put_in: Together, rounding: Mapping[str, InputRounding]) -> dict[str, float]:
    """Relative errors of the inputs that were rounded, of tensors whose inputs calibration saw."""
    return {n: rounding[n].lost(block) for n, block in put_in.rounded.items() if n in rounding}


def _block(checkpoint: Checkpoint, info: TensorInfo) -> int:
    """Inputs that share a scale beside the types that most plans take: 256, or 32 where rows have no such blocks."""
    if info.role == Role.EMBEDDING and "output.weight" in checkpoint.tensors:
        return 0  # only looked up
    return next((block for block in BLOCKS if info.shape[-1] % block == 0), 0)


def _errors(weights: Mapping[str, float], sizes: Mapping[str, int], c: float) -> list[tuple[float, float]]:
    """(weight, relative error) of each tensor."""
    return [(w, min(MOST_ERROR, c * sizes[n] / w) if w > 0 else MOST_ERROR) for n, w in weights.items()]
