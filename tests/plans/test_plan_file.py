"""Plans as files: round trip, schema, and everything that is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models.model_bench import Bench
from small_models.random_plans import plans

from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint, plan_schema, read_plan, write_plan

PUBLISHED = Path(__file__).parents[2] / "docs" / "formats" / "plan.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(plan_schema())


@pytest.fixture(scope="module")
def real(bench: Bench) -> Plan:
    budget = int(4.5 * bench.topology.total_parameters / 8)
    return bench.plan(budget, types=("Q3_K", "Q4_K", "Q6_K"), keep="12")


@pytest.fixture
def plan_path(real: Plan, tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.json", real)
    return tmp_path / "plan.json"


def test_real_plan_round_trips(real: Plan, plan_path: Path) -> None:
    assert read_plan(plan_path) == real
    VALIDATOR.validate(json.loads(plan_path.read_text()))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_any_plan_round_trips(plan: Plan, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    VALIDATOR.validate(json.loads((tmp_path / "plan.json").read_text()))


def test_schema_is_the_published_one() -> None:
    jsonschema.Draft202012Validator.check_schema(plan_schema())
    assert json.loads(PUBLISHED.read_text()) == plan_schema()


def _members(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every member, taking one item of each list and mapping."""
    if isinstance(data, dict):
        some = list(data) if path in ((), ("source",), ("pruning",), ("activation",)) else list(data)[:2]
        some = [key for key in some if key != "version"]  # Python takes true for 1 there, JSON Schema does not
        return [p for key in some for p in ((*path, key), *_members(data[key], (*path, key)))]
    if isinstance(data, list) and data:
        return _members(data[0], (*path, 0))
    return []


@pytest.mark.parametrize("wrong", [{"a": []}, [{}], True, 1.5, "x" * 4, None, -1, float("nan"), 10**30])
def test_schema_and_reader_agree_on_wrong_members(wrong: Any, real: Plan, tmp_path: Path) -> None:
    """Whatever member gets a wrong value: no traceback, and the reader takes nothing the schema refuses."""
    path = tmp_path / "plan.json"
    write_plan(path, real)
    whole = json.loads(path.read_text())
    for place in _members(whole):
        data = copy.deepcopy(whole)
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrong
        path.write_text(json.dumps(data))
        try:
            read_plan(path)
        except CollabError as error:
            assert "\n" not in str(error)
        else:
            assert VALIDATOR.is_valid(data), place


# -- what decides the bytes cannot be edited

EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "type of a tensor": lambda d: _quantized(d).update(type="Q5_K"),
    "kept expert": lambda d: _swap(next(iter(d["pruning"]["kept"].values()))),
    "experts a token": lambda d: d["activation"].update(used=2),
    "metadata": lambda d: d["metadata"].update({next(iter(d["metadata"])): 11}),
    "source": lambda d: d["source"].update(fingerprint="sha256:" + "0" * 64),
    "stats": lambda d: d["calibration"].update(sha256="0" * 64),
    "fingerprint": lambda d: d.update(fingerprint="sha256:" + "0" * 64),
}


def _quantized(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in data["tensors"].values() if t["type"].startswith("Q"))
    return found


def _swap(ids: list[int]) -> None:
    ids[0], ids[1] = ids[1], ids[0]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_plan(edit: str, plan_path: Path) -> None:
    data = json.loads(plan_path.read_text())
    EDITS[edit](data)
    plan_path.write_text(json.dumps(data))
    with pytest.raises(CollabError, match="was changed after it was made"):
        read_plan(plan_path)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "foreign JSON": (lambda d: d.update(format="something else"), "is not a plan file of collab-plugin"),
    "no format": (lambda d: d.pop("format"), "is not a plan file of collab-plugin"),
    "later version": (lambda d: d.update(version=99), "has plan version 99; this collab-plugin reads 1"),
    "no version": (lambda d: d.pop("version"), "has plan version None"),
    "unknown member": (lambda d: d.update(surprise=1), "$ has unknown member 'surprise'"),
    "missing member": (lambda d: d.pop("budget"), "$ has no member 'budget'"),
    "nested": (lambda d: d["source"].pop("bytes"), "$.source has no member 'bytes'"),
    "text for a number": (lambda d: d.update(bytes="many"), "$.bytes is 'many', not int"),
    "truth for a number": (lambda d: d.update(bytes=True), "$.bytes is 'True', not int"),
    "unknown type": (lambda d: next(iter(d["tensors"].values())).update(type="Q9_K"), "unknown type 'Q9_K'"),
    "unknown groups": (lambda d: d["pruning"].update(group_policy="merged"), "$.pruning.group_policy is 'merged'"),
    "long name": (lambda d: d["tensors"].update({"n" * 64: next(iter(d["tensors"].values()))}), "longer than 63 bytes"),
    "too few kept": (lambda d: _kept(d).pop(), "lists 11 experts, not 12"),
    "kept twice": (lambda d: _kept(d).__setitem__(0, _kept(d)[1]), "repeats an expert"),
    "impossible expert": (lambda d: _kept(d).__setitem__(0, -1), "names an impossible one"),
    "more kept in one layer": (lambda d: _kept(d).append(12), "lists 13 experts, not 12"),
    "requirement that the plan has not": (
        lambda d: d.update(requires=["expert-count-by-layer"]),
        "$.requires is ['expert-count-by-layer'], what the plan keeps requires []",
    ),
    "requirement twice": (lambda d: d.update(requires=["expert-count-by-layer"] * 2), "$.requires is"),
    "unknown requirement": (lambda d: d.update(requires=["gold"]), "$.requires[0] is 'gold'"),
    "no experts used": (lambda d: d["activation"].update(used=0), "$.activation.used is 0 of 12 experts"),
    "too many used": (lambda d: d["activation"].update(used=13), "$.activation.used is 13 of 12 experts"),
    "folder of the stats": (lambda d: d["calibration"].update(file="../stats.gguf"), "not a plain file name"),
    "layer that is no number": (lambda d: d["pruning"]["kept"].update({"x": []}), "which is no number"),
}


def _kept(data: dict[str, Any]) -> list[int]:
    found: list[int] = next(iter(data["pruning"]["kept"].values()))
    return found


@pytest.mark.parametrize("what", BROKEN)
def test_broken_plan(what: str, plan_path: Path) -> None:
    edit, message = BROKEN[what]
    data = json.loads(plan_path.read_text())
    edit(data)
    plan_path.write_text(json.dumps(data))
    with pytest.raises(CollabError) as error:
        read_plan(plan_path)
    assert message in str(error.value)
    assert str(plan_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, "\x00GGUF", "{}", '{"format": 1}'])
def test_what_is_no_plan(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(CollabError, match=r"is not JSON|is not a plan"):
        read_plan(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_plan(data: st.DataObject, plan_path: Path, tmp_path: Path) -> None:
    whole = plan_path.read_bytes().rstrip()
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CollabError, match="is not JSON"):
        read_plan(cut)


def test_missing_plan(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="cannot read the plan"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(CollabError, match="cannot read the plan"):
        read_plan(tmp_path)


def test_written_whole_or_not_at_all(real: Plan, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="cannot write"):
        write_plan(tmp_path / "no" / "plan.json", real)
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_ignores_what_the_bytes_do_not_depend_on(real: Plan) -> None:
    assert real.calibration is not None
    moved = dataclasses.replace(
        real,
        calibration=dataclasses.replace(real.calibration, file="/elsewhere/stats.gguf"),
        notes=(),
        versions={},
        budget=None,
    )
    assert plan_fingerprint(moved) == plan_fingerprint(real)
