"""Dataclasses to and from JSON, strictly, and the schema that says the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat, from_plain, schema_of, to_plain


@dataclass(frozen=True)
class Leaf:
    number: int
    figure: float | None


@dataclass(frozen=True)
class Tree:
    name: str
    flag: bool
    kind: Literal["oak", "elm"]
    leaves: tuple[Leaf, ...]
    by_layer: Mapping[int, tuple[int, ...]]
    free: Mapping[str, int | str]


TREE = Tree("ü", True, "oak", (Leaf(1, None), Leaf(-2, 0.5)), {3: (1, 2), 10: ()}, {"a": 1, "b": "x"})
PLAIN: dict[str, Any] = {
    "name": "ü",
    "flag": True,
    "kind": "oak",
    "leaves": [{"number": 1, "figure": None}, {"number": -2, "figure": 0.5}],
    "by_layer": {"3": [1, 2], "10": []},
    "free": {"a": 1, "b": "x"},
}
VALIDATOR = jsonschema.Draft202012Validator(schema_of(Tree))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def test_plain() -> None:
    assert to_plain(TREE) == PLAIN
    assert from_plain(Tree, json.loads(json.dumps(PLAIN))) == TREE
    VALIDATOR.validate(PLAIN)


@given(
    st.builds(
        Tree,
        st.text(),
        st.booleans(),
        st.sampled_from(["oak", "elm"]),
        st.lists(
            st.builds(Leaf, st.integers(-(2**62), 2**62), st.none() | st.floats(allow_nan=False, allow_infinity=False))
        ).map(tuple),
        st.dictionaries(st.integers(0, 10**8), st.lists(st.integers(0, 9)).map(tuple)),
        st.dictionaries(st.text(), st.integers(0, 9) | st.text()),
    )
)
def test_round_trip(tree: Tree) -> None:
    plain = json.loads(json.dumps(to_plain(tree)))
    assert from_plain(Tree, plain) == tree
    assert VALIDATOR.is_valid(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "$ has unknown member 'extra'"),
        ({"name": 5}, "$.name is '5', not str"),
        ({"flag": 1}, "$.flag is '1', not bool"),
        ({"kind": "ash"}, "$.kind is 'ash', not one of 'oak', 'elm'"),
        ({"leaves": {}}, "$.leaves is not a list"),
        ({"leaves": [7]}, "$.leaves[0] is not an object"),
        ({"leaves": [{"number": True, "figure": 1}]}, "$.leaves[0].number is 'True', not int"),
        ({"leaves": [{"number": 1.0, "figure": 1}]}, "$.leaves[0].number is '1.0', not int"),
        ({"leaves": [{"number": 2**63, "figure": 1}]}, "$.leaves[0].number is '9223372036854775808', not int"),
        ({"leaves": [{"number": 1, "figure": float("inf")}]}, "$.leaves[0].figure is not finite"),
        ({"leaves": [{"number": 1}]}, "$.leaves[0] has no member 'figure'"),
        ({"by_layer": []}, "$.by_layer is not an object"),
        ({"by_layer": {"-1": []}}, "$.by_layer has the key '-1', which is no number"),
        ({"by_layer": {"٣": []}}, "$.by_layer has the key '٣', which is no number"),
        ({"by_layer": {"1": ["x"]}}, "$.by_layer.1[0] is 'x', not int"),
        ({"free": {"a": []}}, "$.free.a is '[]', not str"),
    ],
)
def test_errors_name_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CollabError) as error:
        from_plain(Tree, {**PLAIN, **change})
    assert str(error.value) == message


@given(data=st.data())
def test_whatever_comes_is_built_or_refused(data: st.DataObject) -> None:
    """Any JSON in place of any member: no other exception, and nothing is taken that the schema refuses."""
    changed = {**PLAIN, data.draw(st.sampled_from(sorted(PLAIN))): data.draw(JSON)}
    try:
        from_plain(Tree, changed)
    except CollabError:
        pass
    else:
        assert VALIDATOR.is_valid(changed)


@pytest.mark.parametrize("data", [None, 3, "x", []])
def test_what_is_no_object(data: Any) -> None:
    with pytest.raises(CollabError, match="is not an object"):
        from_plain(Tree, data)


# -- versioned documents


def _no_oak(tree: Tree) -> None:
    if tree.name == "oak":
        raise CollabError("$.name is 'oak'")


FORMAT = JsonFormat("collab-plugin tree", 3, Tree, 2**10, _no_oak)
SEALED = JsonFormat("collab-plugin tree", 3, Tree, 2**10, _no_oak, lambda tree: f"sha256:{len(tree.name):064x}")


def test_document_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    FORMAT.write(path, TREE)
    assert json.loads(path.read_text()) == {"format": "collab-plugin tree", "version": 3, **PLAIN}
    assert FORMAT.read(path) == TREE
    jsonschema.Draft202012Validator(FORMAT.schema()).validate(json.loads(path.read_text()))
    assert [p.name for p in tmp_path.iterdir()] == ["tree.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("[]", "is not a tree file of collab-plugin"),
        ("[" * 1000, "is not JSON"),
        ({"format": "collab-plugin plan"}, "is not a tree file of collab-plugin"),
        ({"version": 4}, "has tree version 4; this collab-plugin reads 3"),
        ({"version": None}, "has tree version None; this collab-plugin reads 3"),
        ({"more": 1}, "$ has unknown member 'more'"),
        ({"leaves": [{"number": 1, "figure": float("nan")}]}, "$.leaves[0].figure is not finite"),
        ({"name": "oak"}, "$.name is 'oak'"),
        ({"name": "x" * 2**10}, "is larger than any tree file"),
    ],
)
def test_wrong_document_is_named(text: str | dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    if not isinstance(text, str):
        text = json.dumps({"format": "collab-plugin tree", "version": 3, **PLAIN} | text)
    path.write_text(text)
    with pytest.raises(CollabError) as caught:
        FORMAT.read(path)
    assert str(caught.value).startswith(f"{path}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_document_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match=r"cannot read the tree .*: No such file or directory"):
        FORMAT.read(tmp_path / "nowhere.json")


def test_true_is_no_version(tmp_path: Path) -> None:
    one = JsonFormat("collab-plugin tree", 1, Tree, 2**10)
    (tmp_path / "tree.json").write_text(json.dumps({"format": "collab-plugin tree", "version": True, **PLAIN}))
    with pytest.raises(CollabError, match="has tree version True; this collab-plugin reads 1"):
        one.read(tmp_path / "tree.json")


def test_fingerprint_tells_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    SEALED.write(path, TREE)
    assert SEALED.read(path) == TREE
    data = json.loads(path.read_text())
    jsonschema.Draft202012Validator(SEALED.schema()).validate(data)
    path.write_text(json.dumps(data | {"name": "elm"}))
    with pytest.raises(CollabError, match="was changed after it was made"):
        SEALED.read(path)


def test_figure_that_is_not_finite_is_a_bug() -> None:
    tree = from_plain(Tree, PLAIN)
    with pytest.raises(ValueError, match="not JSON compliant"):
        FORMAT.text(Tree(tree.name, tree.flag, tree.kind, (Leaf(1, float("inf")),), {}, {}))
