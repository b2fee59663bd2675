"""Placements as JSON files: read strictly, write atomically, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat
from collab_plugin.formats.tensor_names import Role, role_of
from collab_plugin.placement.placement import PLACEMENT_VERSION, Placement


def _check(placement: Placement) -> None:
    """What the types cannot say."""
    names = [tier.name for tier in placement.tiers]
    if len(set(names)) != len(names):
        raise CollabError("$.tiers has two tiers of one name")
    for index, tier in enumerate(placement.tiers):
        if tier.bytes < 0:
            raise CollabError(f"$.tiers[{index}].bytes is {tier.bytes}")
    for tensor, tier_name in placement.experts.items():
        if role_of(tensor) != Role.EXPERT:
            raise CollabError(f"$.experts names {tensor!r}, which is no expert tensor such as blk.3.ffn_up_exps.weight")
        if tier_name not in names:
            raise CollabError(f"$.experts.{tensor} is {tier_name!r}, which is no tier; known: {', '.join(names)}")
    if placement.context < 1:
        raise CollabError(f"$.context is {placement.context}")


PLACEMENT_FILE = JsonFormat("collab-plugin placement", PLACEMENT_VERSION, Placement, 16 * 2**20, _check)


def placement_schema() -> dict[str, Any]:
    """The JSON Schema of a placement file, published as docs/formats/placement.schema.json."""
    return PLACEMENT_FILE.schema()


def write_placement(path: Path, placement: Placement) -> None:
    """Write the placement as JSON, whole or not at all."""
    PLACEMENT_FILE.write(path, placement)


def read_placement(path: Path) -> Placement:
    """Read and check a placement; CollabError naming the file and the JSON path of what is wrong."""
    return PLACEMENT_FILE.read(path)
