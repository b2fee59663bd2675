"""One thing a name: modules and public classes of the packages do not share names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from our_packages import PACKAGES

# A command's module is called as the command, a call's module as the call; every plugin's entry point is `plugin`.
OF_ITS_FOLDER = {"cli", "api"}
ENTRY_POINT = "plugin"
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all packages; those that every package has left out."""
    found = {}
    for package, start in PACKAGES.items():
        for path in sorted((start / package).rglob("*.py")):
            if path.name not in ("__init__.py", "__main__.py"):
                found[".".join(path.relative_to(start).with_suffix("").parts)] = path
    return found


def twice(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Last name -> where it is, for each that is in more than one place; ``names``: place -> last name."""
    places = defaultdict(list)
    for place, name in names.items():
        places[name].append(place)
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def test_modules_share_no_name() -> None:
    names = {
        place: place.rpartition(".")[2]
        for place in modules()
        if place.split(".")[-2] not in OF_ITS_FOLDER and place.split(".")[-1] != ENTRY_POINT
    }
    assert twice(names) == {}


def test_public_classes_share_no_name() -> None:
    names = {
        f"{place}.{node.name}": node.name
        for place, path in modules().items()
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    assert twice(names) == {}


def test_no_module_has_a_vague_name() -> None:
    assert [place for place in modules() if place.rpartition(".")[2] in VAGUE] == []


def test_a_shared_name_is_seen() -> None:
    assert twice({"a.plan": "plan", "b.plan": "plan", "b.c": "c"}) == {"plan": ["a.plan", "b.plan"]}
