"""Placements written and read back; mistakes in them named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import (
    ExpertPlacement,
    LayerExperts,
    PlacedArtifact,
    Placement,
    PlacementSource,
    PolicyUse,
    SpeedForecast,
    TensorPlacement,
    Tier,
)
from collab_plugin.placement.placement_file import placement_schema, read_placement, write_placement

TIERS = (Tier("gpu0", "gpu", 24 * 2**30, 1e12, True), Tier("ram", "host", 128 * 2**30), Tier("ssd", "disk", None))
NAMES = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(4) for part in ("gate", "up", "down")]
LAYER = LayerExperts({"gpu0": (2, 0), "ram": (1, 3)}, {"gpu0": 0.75, "ram": 0.25})
EXPERTS = ExpertPlacement(PolicyUse("lfu-decay", {"decay": 0.95}, True), {3: LAYER}, {"gpu0": 0.75, "ram": 0.25}, None)
PLACEMENT = Placement(
    PlacedArtifact("tiny", 123, "sha256:0"),
    TIERS,
    TensorPlacement({NAMES[0]: "ram"}, False, {"ram": 1.0}, SpeedForecast(10.0, 12.5, None)),
    EXPERTS,
    PlacementSource("stats.gguf", "0" * 64, 4096),
    4096,
    ("a note",),
)


TENSORS = {"tiers": {}, "fit": False, "reads": {}, "speed": None}
TIER = {"name": "ram", "kind": "host", "bytes": 1, "bandwidth": None, "measured": False}


def experts_with(tiers: dict[str, list[int]]) -> dict[str, object]:
    policy = {"name": "lru", "parameters": {}, "dynamic": True}
    return {"policy": policy, "layers": {"3": {"tiers": tiers, "reads": {}}}, "reads": {}, "speed": None}


@settings(deadline=None)
@given(
    experts=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["gpu0", "ram"])),
    context=st.integers(1, 2**30),
    notes=st.lists(st.text()).map(tuple),
)
def test_round_trip(
    experts: dict[str, str], context: int, notes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("placement") / "placement.json"
    placement = replace(PLACEMENT, tensors=TensorPlacement(experts, True, {}, None), context=context, notes=notes)
    write_placement(path, placement)
    assert read_placement(path) == placement
    jsonschema.validate(json.loads(path.read_text()), placement_schema())


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("format", "collab-plugin plan", "is not a placement"),
        ("version", 1, "placement version 1"),
        ("tensors", TENSORS | {"tiers": {"blk.0.ffn_up.weight": "ram"}}, "no expert tensor"),
        ("tensors", TENSORS | {"tiers": {"output.weight": "ram"}}, "no expert tensor"),
        ("tensors", TENSORS | {"tiers": {NAMES[0]: "tape"}}, "no tier; known: gpu0, ram, ssd"),
        ("tensors", TENSORS | {"reads": {"ram": 1.5}}, "$.tensors.reads.ram is 1.5, no share"),
        ("tensors", TENSORS | {"reads": {"tape": 0.5}}, "$.tensors.reads is 'tape', which is no tier"),
        ("experts", experts_with({"gpu0": [0, 1], "ram": [1, 2]}), "not name every expert from 0 on, each once"),
        ("experts", experts_with({"gpu0": [0], "ram": [2]}), "not name every expert from 0 on, each once"),
        ("experts", experts_with({"tape": [0]}), "$.experts.layers.3.tiers is 'tape', which is no tier"),
        ("tiers", [], "$.tiers is empty"),
        ("context", 0, "$.context is 0"),
        ("context", "many", "$.context is 'many', not int"),
        ("tiers", [TIER | {"kind": "tape"}], "$.tiers[0].kind"),
        ("tiers", [TIER] * 2, "two tiers of one name"),
        ("tiers", [TIER | {"bytes": -1}], "$.tiers[0].bytes is -1"),
        ("tiers", [TIER | {"bandwidth": 0.0}], "$.tiers[0].bandwidth is 0.0"),
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
