"""The floors: nothing imports upwards, adapters stay out of the stages, and the picture is of today's code."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
# Stages make decisions and files: what is built on the core gets their results as documents.
STAGES = {"compression", "planning", "evaluation", "reports", "api"}
# But for what a stage asks others to fulfil, and the results that they fill in.
STAGE_CONTRACTS = {"collab_plugin.evaluation.task_runner", "collab_plugin.evaluation.scores"}
# Of the command line an adapter may take how a command shows a result, how far it is, and how many threads it has.
COMMAND_PARTS = {"collab_plugin.cli.output", "collab_plugin.cli.progress", "collab_plugin.cli.threads"}


def script() -> ModuleType:
    path = ROOT / "docs" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_architecture"] = module
    spec.loader.exec_module(module)
    return module


ARCHITECTURE = script()
ADAPTERS = [name for name, folder in ARCHITECTURE.OTHERS.items() if folder == "adapters"]


def imported_modules(package: str) -> set[tuple[str, str]]:
    """(module, module that it imports), of our packages."""
    found = set()
    for name, path in ARCHITECTURE.modules(package):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("collab_"):
                found.add((name, node.module))
            elif isinstance(node, ast.Import):
                found |= {(name, alias.name) for alias in node.names if alias.name.startswith("collab_")}
    return found


def test_no_import_runs_up() -> None:
    found = ARCHITECTURE.upward(ARCHITECTURE.imports("collab_plugin"))
    assert [f"{i.module} imports from {i.room}" for i in found] == []


def test_an_upward_import_is_seen() -> None:
    wrong = ARCHITECTURE.Import("collab_plugin", "collab_plugin.formats.text_file", "plans", False)
    beside = ARCHITECTURE.Import("collab_plugin", "collab_plugin.stats.stats", "plans", True)
    right = ARCHITECTURE.Import("collab_plugin", "collab_plugin.plans.plan", "formats", False)
    assert ARCHITECTURE.upward([wrong, beside, right]) == [wrong, beside]


def test_the_core_imports_no_package_that_is_built_on_it() -> None:
    others = tuple(ARCHITECTURE.OTHERS)
    assert [pair for pair in imported_modules("collab_plugin") if pair[1].split(".")[0] in others] == []


def test_the_root_is_small() -> None:
    entries = sorted(p.name for p in (ROOT / "collab_plugin").iterdir() if p.name != "__pycache__")
    assert len(entries) <= 20, entries


@pytest.mark.parametrize("package", ADAPTERS)
def test_adapters_reach_contracts_and_documents_alone(package: str) -> None:
    closed = {*STAGES, "cli"}
    wrong = [
        f"{module} imports {other}"
        for module, other in sorted(imported_modules(package))
        if other.startswith("collab_plugin.") and ARCHITECTURE.room_of(other) in closed
        if other not in STAGE_CONTRACTS | COMMAND_PARTS
    ]
    assert wrong == []


@pytest.mark.parametrize("package", list(ARCHITECTURE.OTHERS))
def test_no_adapter_is_imported_from_outside(package: str) -> None:
    others = {name for name in ADAPTERS if name != package}
    assert [pair for pair in imported_modules(package) if pair[1].split(".")[0] in others] == []


def test_tables_are_current() -> None:
    page = ARCHITECTURE.PAGE.read_text("utf-8")
    assert page == ARCHITECTURE.filled(page, ARCHITECTURE.tables()), "run python docs/draw_architecture.py"


def test_picture_is_of_these_tables() -> None:
    with Image.open(ARCHITECTURE.PICTURE) as picture:
        drawn_of = picture.info[ARCHITECTURE.DRAWN_OF]
    assert drawn_of == ARCHITECTURE.digest(ARCHITECTURE.tables()), "run python docs/draw_architecture.py"
