"""Weights and bits, read from a plan alone: its tensors' types and bytes say how many weights there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from collab_plugin.formats.tensor_names import Role, layer_of, role_of
from collab_plugin.placement.artifact_shape import weights_of
from collab_plugin.plans.plan import Plan

MAX_EXPERTS = 65536
"""A plan's expert ids are 16 bits wide (plan_file.py); more are figures that contradict each other."""
BY_EXPERT = (Role.EXPERT, Role.ROUTER, Role.ROUTER_BIAS)


@dataclass(frozen=True)
class Bits:
    """What a part of the model takes in the artifact: ``weights`` (kept ones), ``bytes``, bytes by type.

    ``layer`` is None outside the blocks, and for the sum over all layers.
    """

    part: str
    layer: int | None
    weights: int
    bytes: int
    bits_per_weight: float
    types: dict[str, int]


@dataclass(frozen=True)
class BitsMap:
    """``by_role`` in descending bytes; ``cells``: one for each part and layer.

    A part is a role, experts split by projection ("expert gate", "expert up", "expert down").
    """

    by_role: tuple[Bits, ...]
    layers: tuple[int, ...]
    cells: tuple[Bits, ...]

    def by_part(self) -> dict[str, dict[int | None, Bits]]:
        """Cells by part, then layer."""
        found: dict[str, dict[int | None, Bits]] = {}
        for bits in self.cells:
            found.setdefault(bits.part, {})[bits.layer] = bits
        return found


def part_of(name: str) -> str:
    """Return the role of a tensor, with the projection for routed experts."""
    role = role_of(name)
    if role != Role.EXPERT:
        return str(role)
    projection = name.split(".")[2].removeprefix("ffn_").split("_exps")[0].removesuffix("_chexps")
    return f"expert {projection.replace('_', '+')}"


def bits_map(plan: Plan) -> BitsMap:
    """Return bits by role, and by part and layer."""
    roles: dict[str, list[str]] = {}
    cells: dict[tuple[str, int | None], list[str]] = {}
    for name in plan.tensors:
        roles.setdefault(str(role_of(name)), []).append(name)
        cells.setdefault((part_of(name), layer_of(name)), []).append(name)
    by_role = [_bits(plan, role, None, names) for role, names in roles.items()]
    return BitsMap(
        tuple(sorted(by_role, key=lambda bits: -bits.bytes)),
        tuple(sorted({layer for _, layer in cells if layer is not None})),
        tuple(_bits(plan, part, layer, names) for (part, layer), names in cells.items()),
    )


def _bits(plan: Plan, part: str, layer: int | None, names: Iterable[str]) -> Bits:
    tensors = [plan.tensors[name] for name in names]
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.nbytes
    ordered = dict(sorted(types.items(), key=lambda item: -item[1]))
    weights, size = sum(map(weights_of, tensors)), sum(t.nbytes for t in tensors)
    return Bits(part, layer, weights, size, 8 * size / max(weights, 1), ordered)


def original_experts(plan: Plan) -> int | None:
    """Return how many experts a layer had before pruning; None when the plan's sizes do not tell.

    Layers keep E' of E experts, on average where they differ, so what the artifact lacks of the source's
    parameters is (E − E') / E' of what its experts, router rows and router biases hold.
    """
    kept = plan.pruning.expert_count
    missing = plan.source.parameters - sum(map(weights_of, plan.tensors.values()))
    held = sum(weights_of(t) for name, t in plan.tensors.items() if role_of(name) in BY_EXPERT)
    if not plan.pruning.kept and kept > MAX_EXPERTS:
        return None
    if not plan.pruning.kept or held <= 0 or missing < 0:
        return kept if missing == 0 else None
    dropped, rest = divmod(missing * kept, held)
    return None if rest or kept + dropped > MAX_EXPERTS else kept + dropped


def moe_layers(plan: Plan) -> tuple[int, ...]:
    """Return the blocks that have routed experts; those that predict further tokens, of unknown routing, are none."""
    predicting = {layer_of(name) for name in plan.tensors if ".nextn." in name}
    found = {layer_of(name) for name in plan.tensors if role_of(name) == Role.EXPERT} - predicting
    return tuple(sorted(layer for layer in found if layer is not None))
