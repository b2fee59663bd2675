"""The KL divergence, in nats, that errors and pruning are predicted to cost.

D(plan) = f(Σ_i ω_i ε_i) + P(experts kept, experts used) with f(x) = x₀ (x / x₀)^p; method.md §6 has the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.learned_weights import Learned, learned_weights, table_weights
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.pruning_law import PruneCost, stream_prune_cost
from collab_plugin.planning.repaired_errors import RepairedErrors
from collab_plugin.stats.sensitivity import PruningProbe, Sensitivity, TogetherProbe

PRUNING = 8.0
"""KL divergence of pruning over Σ_l ω_down(l) × lost share of router weight, with the table's ω: 6 to 14."""

REPAIRED = 0.5
"""What is left of the KL divergence of pruning after the kept experts were fitted: 0.36, 0.46, 0.55 and 0.61 on four
models at a quarter dropped (docs/quality.md §9)."""

ENOUGH_GROUPS = 3
"""Probed groups before their level is taken for that of the others: in a demo cut short after the
embedding alone, its level made the prediction half of what was measured."""

POWER, PIVOT = 0.83, 0.009
"""Errors together cost less than the sum of what each costs where that is much, and more where it is little: small ones
move a router's choice, and the share of tokens that choose otherwise grows with the square root of all errors."""

REAL_ERRORS = 1.15
"""What real errors cost over random ones of their size: medians of 1.02 to 1.24 on five judges (docs/quality.md §4).
With samples it is measured for the experts (planning/repaired_errors.py), and little else errs."""

WITHIN_PROBED, WITHIN_REPAIRED, WITHIN_UNPROBED = 1.6, 1.6, 1.8
"""Factor that predicted and measured KL divergence were apart at most, over the plans of benchmarks/results/quality.csv
(tests/repository/test_goals.py); unprobed ones also over those of unseen.csv, by the constants of their days."""

UNPROBED = (
    "not probed: from the residual stream of this model, by a law learnt on others, which was within a factor of "
    f"{WITHIN_UNPROBED} of measured plans (probe measures it)"
)
UNMEASURED = "not probed: from a table learnt on small models, order of magnitude only (probe measures it)"


@dataclass(frozen=True)
class Predictor:
    """``weights``: nats per unit of relative error, by tensor. ``source``: one line for the plan. ``errors``: nats that
    errors cost together, of what they cost one by one, added up."""

    weights: Mapping[str, float]
    prune: PruneCost
    source: str
    errors: Callable[[float], float]

    def total(self, cost: float, kept: int, used: int) -> float:
        """Nats of a plan whose errors times weights add up to ``cost``."""
        return self.errors(cost) + self.prune(kept, used)


def together(cost: float) -> float:
    """Nats that errors cost together, whose costs one by one add up to ``cost``."""
    return PIVOT * (cost / PIVOT) ** POWER if cost > 0 else 0.0


def probed_together(
    weights: Mapping[str, float], probes: Sequence[TogetherProbe], real: float = REAL_ERRORS
) -> Callable[[float], float]:
    """`together` as it was measured on this model: linear in the logarithms between the probes of all tensors at once,
    beyond them with the law's power; ``real`` times as much, as probes put in random errors. The law where there are
    none."""
    costs = [sum(weights.get(n, 0.0) * e for put_in in (p.errors, p.inputs) for n, e in put_in.items()) for p in probes]
    measured = {cost: p.kld for cost, p in zip(costs, probes, strict=True) if cost > 0 and p.kld > 0}
    if not measured:
        return together
    x = np.array(sorted(measured))
    y = real * np.maximum.accumulate([measured[cost] for cost in x])

    def cost(total: float) -> float:
        if total <= 0:
            return 0.0
        inside = float(np.clip(total, x[0], x[-1]))
        return float(np.exp(np.interp(np.log(inside), np.log(x), np.log(y))) * (total / inside) ** POWER)

    return cost


def probed_weights(default: Mapping[str, float], probes: Sensitivity) -> dict[str, float]:
    """Weights from probes: of the smallest group that a tensor was probed in.

    Within a group the error is shared evenly. Tensors in no group keep the default, scaled by the
    median over the groups of probed over default, once there are three: one says nothing of the others.
    """
    found: dict[str, float] = {}
    ratios = []
    for probe in sorted(probes.groups, key=lambda p: len(p.tensors), reverse=True):
        known = [default[n] for n in probe.tensors if n in default]
        if probe.error > 0 and known:
            weight = max(probe.kld, 0.0) / probe.error
            found |= dict.fromkeys(probe.tensors, weight)
            ratios.append(weight / mean(known))
    scale = median(ratios) if len(ratios) >= ENOUGH_GROUPS else 1.0
    return {n: found.get(n, w * scale) for n, w in default.items()}


def default_prune_cost(
    checkpoint: Checkpoint,
    topology: Topology,
    weights: Mapping[str, float],
    lost: Callable[[int, int], Mapping[int, float]],
) -> PruneCost:
    """Where nobody measured what experts write. ``lost(kept, used)``: share of router weight of the dropped, by layer.

    P = 8 Σ_l ω_down(l) (lost_l + ((k − k') / k)³): with fewer experts a token, the weakest go.
    """
    down = {
        info.layer: weights[n]
        for n, info in checkpoint.tensors.items()
        if info.role == Role.EXPERT and "_down" in n and n in weights
    }

    def cost(kept: int, used: int) -> float:
        share = max(0, topology.experts_used - used) / topology.experts_used
        gone = lost(kept, used) if kept < topology.expert_count else {}
        return PRUNING * sum(w * (gone.get(layer or 0, 0.0) + share**3) for layer, w in down.items())

    return cost


def probed_prune_cost(default: PruneCost, probes: tuple[PruningProbe, ...], experts: int) -> PruneCost:
    """Measured where probed; between probes the default, scaled by what the nearest ones say.

    The scale is interpolated in the share dropped among probes of the same experts used (else of all).
    """

    def cost(kept: int, used: int) -> float:
        here = [p for p in probes if p.expert_count == kept and p.experts_used == used]
        if here:
            return max(here[-1].kld, 0.0)
        guess = default(kept, used)
        ratios = _ratios(default, [p for p in probes if p.experts_used == used] or list(probes), experts)
        if guess <= 0 or not ratios:
            return guess
        shares, logs = zip(*ratios, strict=True)
        return guess * math.exp(float(np.interp(1 - kept / experts, shares, logs)))

    return cost


def _ratios(default: PruneCost, probes: list[PruningProbe], experts: int) -> list[tuple[float, float]]:
    """(share dropped, log of measured over default), ascending, one a share."""
    found: dict[float, float] = {}
    for p in probes:
        guess = default(p.expert_count, p.experts_used)
        if guess > 0 and p.kld > 0:
            found[1 - p.expert_count / experts] = math.log(p.kld / guess)
    return sorted(found.items())


def predictor_of(candidates: Candidates, repaired: RepairedErrors | None = None) -> Predictor:
    """From the sensitivity document where there is one, else from models probed earlier.

    ``repaired``: what repair with the planning's samples leaves of errors; None: of files that are not repaired.
    Probed prunings count when they were made by the same rule on the same statistics: they dropped the same experts.
    """
    planning = candidates.planning
    checkpoint, topology = planning.checkpoint, planning.topology
    learned = learned_weights(checkpoint, topology, planning.stats, planning.imatrix)
    guess = _unprobed_prune_cost(candidates, learned)
    found = planning.sensitivity
    if found is None or not (found.groups or found.prunings):
        source = UNPROBED if learned.by_stream else UNMEASURED
        return Predictor(learned.weights, _after_repair(planning, repaired, guess), source, together)
    weights = probed_weights(learned.weights, found)
    within = WITHIN_PROBED if planning.samples_source is None or repaired is None else WITHIN_REPAIRED
    same = planning.stats_source is not None and planning.stats_source.sha256 == found.stats_sha256
    prunings = tuple(p for p in found.prunings if same and p.rule == planning.rule)
    return Predictor(
        weights,
        _after_repair(planning, repaired, probed_prune_cost(guess, prunings, topology.expert_count)),
        f"probed: {len(found.groups)} groups ({len(found.probed & set(weights))} of {len(weights)} tensors) and "
        f"{len(prunings)} prunings on {found.tokens:,} tokens; such predictions were within a factor of "
        f"{within} of measured plans",
        probed_together(weights, found.together, 1.0 if repaired is not None and repaired.shares else REAL_ERRORS),
    )


def _after_repair(planning: PlanningInput, repaired: RepairedErrors | None, cost: PruneCost) -> PruneCost:
    """Prunings are probed without repair; with samples the plan's kept experts are fitted."""
    if planning.samples_source is None or repaired is None:
        return cost
    return lambda kept, used: REPAIRED * cost(kept, used)


def _unprobed_prune_cost(candidates: Candidates, learned: Learned) -> PruneCost:
    planning = candidates.planning
    checkpoint, topology, stats = planning.checkpoint, planning.topology, planning.stats
    if stats is not None and learned.by_stream:
        by_stream = stream_prune_cost(
            checkpoint, topology, stats, learned.prices, lambda count, used: candidates.kept(count, used).kept
        )
        if by_stream is not None:
            return by_stream
    weights = table_weights(checkpoint, topology)
    return default_prune_cost(
        checkpoint, topology, weights, lambda count, used: candidates.kept(count, used).weight_lost
    )
