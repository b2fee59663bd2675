"""Placements written and read back; mistakes in them named."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import PlacedArtifact, Placement, Tier
from collab_plugin.placement.placement_file import placement_schema, read_placement, write_placement

TIERS = (Tier("gpu0", "gpu", 24 * 2**30), Tier("ram", "host", 128 * 2**30))
NAMES = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(4) for part in ("gate", "up", "down")]
PLACEMENT = Placement(PlacedArtifact("tiny", 123), TIERS, {NAMES[0]: "ram"}, 4096, ("a note",))


@given(
    experts=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["gpu0", "ram"])),
    context=st.integers(1, 2**30),
    notes=st.lists(st.text()).map(tuple),
)
def test_round_trip(
    experts: dict[str, str], context: int, notes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("placement") / "placement.json"
    placement = Placement(PlacedArtifact("tiny", 123), TIERS, experts, context, notes)
    write_placement(path, placement)
    assert read_placement(path) == placement
    jsonschema.validate(json.loads(path.read_text()), placement_schema())


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("format", "collab-plugin plan", "is not a placement"),
        ("version", 2, "placement version 2"),
        ("experts", {"blk.0.ffn_up.weight": "ram"}, "no expert tensor"),
        ("experts", {"output.weight": "ram"}, "no expert tensor"),
        ("experts", {NAMES[0]: "disk"}, "no tier; known: gpu0, ram"),
        ("context", 0, "$.context is 0"),
        ("context", "many", "$.context is 'many', not int"),
        ("tiers", [{"name": "a", "kind": "tape", "bytes": 1}], "$.tiers[0].kind"),
        ("tiers", [{"name": "ram", "kind": "host", "bytes": 1}] * 2, "two tiers of one name"),
        ("tiers", [{"name": "ram", "kind": "host", "bytes": -1}], "$.tiers[0].bytes is -1"),
        ("extra", 1, "unknown member 'extra'"),
    ],
)
def test_what_is_wrong_is_named(member: str, value: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    write_placement(path, PLACEMENT)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {member: value}))
    with pytest.raises(CollabError) as caught:
        read_placement(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_no_json_object(text: str, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    path.write_text(text)
    with pytest.raises(CollabError, match=r"placement\.json is no"):
        read_placement(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="cannot read the placement"):
        read_placement(tmp_path / "nowhere.json")
