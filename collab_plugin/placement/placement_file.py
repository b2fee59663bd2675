"""Placement documents as JSON files, checked strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat
from collab_plugin.formats.tensor_names import Role, role_of
from collab_plugin.placement.placement import PLACEMENT_VERSION, LayerExperts, Placement


def _check(placement: Placement) -> None:
    """What the types cannot say."""
    names = [tier.name for tier in placement.tiers]
    if not names:
        raise CollabError("$.tiers is empty")
    if len(set(names)) != len(names):
        raise CollabError("$.tiers has two tiers of one name")
    for index, tier in enumerate(placement.tiers):
        if tier.bytes is not None and tier.bytes < 0:
            raise CollabError(f"$.tiers[{index}].bytes is {tier.bytes}")
        if tier.bandwidth is not None and tier.bandwidth <= 0:
            raise CollabError(f"$.tiers[{index}].bandwidth is {tier.bandwidth}")
    for tensor, tier_name in placement.tensors.tiers.items():
        where = "$.tensors.tiers"
        if role_of(tensor) != Role.EXPERT:
            raise CollabError(f"{where} names {tensor!r}, which is no expert tensor such as blk.3.ffn_up_exps.weight")
        _known(f"{where}.{tensor}", [tier_name], names)
    _shares("$.tensors.reads", placement.tensors.reads, names)
    if placement.experts is not None:
        _shares("$.experts.reads", placement.experts.reads, names)
        for layer, experts in placement.experts.layers.items():
            _layer(f"$.experts.layers.{layer}", experts, names)
    if placement.context < 1:
        raise CollabError(f"$.context is {placement.context}")


def _layer(where: str, layer: LayerExperts, names: list[str]) -> None:
    _known(f"{where}.tiers", layer.tiers, names)
    _shares(f"{where}.reads", layer.reads, names)
    ids = sorted(expert for here in layer.tiers.values() for expert in here)
    if ids != list(range(len(ids))):
        raise CollabError(f"{where}.tiers does not name every expert from 0 on, each once")


def _shares(where: str, reads: Mapping[str, float], names: list[str]) -> None:
    _known(where, reads, names)
    for tier, share in reads.items():
        if not 0 <= share <= 1:
            raise CollabError(f"{where}.{tier} is {share}, no share")


def _known(where: str, given: Iterable[str], names: list[str]) -> None:
    for name in given:
        if name not in names:
            raise CollabError(f"{where} is {name!r}, which is no tier; known: {', '.join(names)}")


PLACEMENT_FILE = JsonFormat("collab-plugin placement", PLACEMENT_VERSION, Placement, 64 * 2**20, _check)


def placement_schema() -> dict[str, Any]:
    """The JSON Schema of a placement file, published as docs/formats/placement.schema.json."""
    return PLACEMENT_FILE.schema()


def write_placement(path: Path, placement: Placement) -> None:
    """Write the placement as JSON, whole or not at all."""
    PLACEMENT_FILE.write(path, placement)


def read_placement(path: Path) -> Placement:
    """Read and check a placement; CollabError naming the file and the JSON path of what is wrong."""
    return PLACEMENT_FILE.read(path)
