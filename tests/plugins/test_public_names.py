"""Everything that a plugin needs comes from one address, `collab_plugin`, which is cheap to import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import collab_plugin
from collab_plugin.plugins.manager import CONTRACTS

SOURCE = Path(collab_plugin.__file__)


def told_to_type_checkers() -> dict[str, str]:
    """Public name -> module, as the imports below ``if TYPE_CHECKING`` say it."""
    body = ast.parse(SOURCE.read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    assert all(alias.asname == alias.name for node in imports for alias in node.names), "re-exports are NAME as NAME"
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checkers_see_the_names_that_can_be_imported() -> None:
    homes = {name: f"collab_plugin.{module}" for name, module in collab_plugin._HOME.items()}
    assert told_to_type_checkers() == homes
    assert set(collab_plugin.__all__) == set(homes)
    assert len(collab_plugin.__all__) == sum(map(len, collab_plugin._HOMES.values())), "no name has two homes"


@pytest.mark.parametrize("name", collab_plugin.__all__)
def test_public_name_is_made_in_its_home(name: str) -> None:
    value = getattr(collab_plugin, name)
    assert value is getattr(import_module(told_to_type_checkers()[name]), name)
    made_in = getattr(value, "__module__", None)
    assert made_in in (told_to_type_checkers()[name], "collections.abc", "typing", None) or name == "hookimpl"


def types_in(hint: object) -> Iterator[type]:
    """The classes of a type hint, whatever they are wrapped in."""
    parts = hint if isinstance(hint, list) else get_args(hint)
    if isinstance(hint, type) and not parts:
        yield hint
    for part in parts:
        yield from types_in(part)


def told_by(contract: type) -> Iterator[type]:
    """Our classes that the fields and public methods of ``contract`` speak of."""
    methods = [value for name, value in inspect.getmembers(contract, inspect.isfunction) if not name.startswith("_")]
    for owner in (contract, *methods):
        if owner.__module__.startswith("collab_plugin."):
            for hint in get_type_hints(owner).values():
                yield from (found for found in types_in(hint) if found.__module__.startswith("collab_plugin."))


def test_every_type_that_a_contract_speaks_of_is_public() -> None:
    """Else a plugin could not name the arguments of its own methods."""
    found: dict[type, str] = {}
    new = {getattr(collab_plugin, name): "the hooks" for name in CONTRACTS.values()}
    while new:
        found |= new
        new = {told: owner.__name__ for owner in new for told in told_by(owner) if told not in found}
    assert len(found) > 2 * len(CONTRACTS)
    hidden = {told.__name__: owner for told, owner in found.items() if told.__name__ not in collab_plugin.__all__}
    assert hidden == {}


def test_no_public_name_is_a_module_s() -> None:
    """Importing a module sets its name in the package, where it would hide the public one."""
    here = SOURCE.parent
    modules = {path.stem for path in here.glob("*.py")} | {path.name for path in here.iterdir() if path.is_dir()}
    assert modules & set(collab_plugin.__all__) == set()


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'collab_plugin' has no attribute 'Alocator'"):
        collab_plugin.Alocator  # type: ignore[attr-defined]  # noqa: B018
    assert set(collab_plugin.__all__) <= set(dir(collab_plugin))


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; import collab_plugin; print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('collab_plugin', 'numpy', 'gguf', 'pluggy', 'scipy', 'click')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['collab_plugin']\n"
    code = "import sys; from collab_plugin import PluginCommand, hookimpl; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", "a plugin's module is imported for every --help"
