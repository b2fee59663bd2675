"""Messages name parameters as the Python interface does; only the command line knows of options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted(path for path in (ROOT / "collab_plugin").rglob("*.py") if "cli" not in path.parts)
OPTION = re.compile(r"--[a-z]")
# A whole command of llama.cpp's own program, to copy.
OTHERS = {"collab_plugin/stats/imatrix_file.py": "llama-imatrix"}


def literals(tree: ast.Module) -> Iterator[ast.Constant]:
    """The strings of a module that are not documentation, which may name options."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def options_in(source: str) -> list[str]:
    return [str(node.value) for node in literals(ast.parse(source)) if OPTION.search(str(node.value))]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_names_no_option(path: Path) -> None:
    program = OTHERS.get(str(path.relative_to(ROOT)))
    found = options_in(path.read_text())
    assert [text for text in found if program is None or program not in text] == []


def test_the_search_sees_messages_and_passes_over_documentation() -> None:
    source = '"""As --keep."""\nx = 1\n"""Default of --keep."""\nraise ValueError(f"--keep {x} is too much")\n'
    assert options_in(source) == ["--keep "]
