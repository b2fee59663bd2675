"""Placements as JSON files: read strictly, write atomically, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.json_document import from_plain, schema_of, to_plain
from collab_plugin.formats.tensor_names import Role, role_of
from collab_plugin.placement.placement import PLACEMENT_VERSION, Placement

FORMAT = "collab-plugin placement"
MAX_BYTES = 16 * 2**20


def placement_schema() -> dict[str, Any]:
    """The JSON Schema of a placement file, published as docs/formats/placement.schema.json."""
    schema = schema_of(Placement)
    schema["properties"] = {
        "format": {"const": FORMAT},
        "version": {"const": PLACEMENT_VERSION},
        **schema["properties"],
    }
    schema["required"] = list(schema["properties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **schema}


def write_placement(path: Path, placement: Placement) -> None:
    """Write the placement as JSON, whole or not at all."""
    head = {"format": FORMAT, "version": PLACEMENT_VERSION}
    write_bytes(path, (json.dumps({**head, **to_plain(placement)}, indent=1, ensure_ascii=False) + "\n").encode())


def read_placement(path: Path) -> Placement:
    """Read and check a placement; CollabError naming the file and the JSON path of what is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CollabError(f"{path} is larger than any placement")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CollabError(f"cannot read the placement {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CollabError(f"{path} is not a placement of collab-plugin")
    if (version := data.pop("version", None)) != PLACEMENT_VERSION or version is True:
        raise CollabError(f"{path} has placement version {version}; this collab-plugin reads {PLACEMENT_VERSION}")
    try:
        placement = from_plain(Placement, data)
        _check(placement)
    except CollabError as error:
        raise CollabError(f"{path}: {error}") from None
    return placement


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
