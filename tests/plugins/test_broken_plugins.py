"""An installed plugin that cannot be loaded: one line that names it, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from collab_plugin import hookimpl
from collab_plugin.plugins.manager import build_registry, plugin_manager

HEAD = "from collab_plugin import hookimpl\n@hookimpl\n"
ARGUMENT = HEAD + "def collab_register_criteria(registre):\n    pass\n"
MISSPELT = HEAD + "def collab_register_criterion(register):\n    pass\n"
UNMARKED = "def collab_register_criteria(register):\n    pass\n"
OTHER = HEAD + "def collab_register_criteria(register):\n    register('reap')\n"
RAISES = HEAD + "def collab_register_criteria(register):\n    1 / 0\n"


def plugins(site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("collab-plugin"), "plugins"],
        env=os.environ | {"PYTHONPATH": str(site)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nowhere_to_be_found\n", "plugin 'rotten' cannot be loaded (ModuleNotFoundError: No module named"),
        ("def broken(:\n", "plugin 'rotten' cannot be loaded (SyntaxError: "),
        ("raise RuntimeError('two\\nlines')\n", "plugin 'rotten' cannot be loaded (RuntimeError: two"),
        (
            ARGUMENT,
            "'rotten': write collab_register_criteria(register) in place of collab_register_criteria(registre)\n",
        ),
        (MISSPELT, "'rotten': there is no hook collab_register_criterion; did you mean collab_register_criteria?\n"),
        (UNMARKED, "plugin 'rotten': collab_register_criteria lacks the decorator @collab_plugin.hookimpl\n"),
        (OTHER, "plugin 'rotten': collab_register_criteria takes ImportanceCriterion, not 'reap'\n"),
        (RAISES, "plugin 'rotten' cannot be loaded (ZeroDivisionError: division by zero)"),
    ],
    ids=["import", "syntax", "raises", "argument", "misspelt", "unmarked", "other-thing", "hook"],
)
def test_broken_plugin_is_named_in_one_line(source: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "rotten_module.py").write_text(source)
    info = tmp_path / "rotten-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rotten\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[collab_plugin]\nrotten = rotten_module\n")
    done = plugins(tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    without = plugins(tmp_path, COLLAB_LOAD_PLUGINS="llamacpp")
    assert without.returncode == 0, without.stderr


def test_hook_of_another_version_is_left_out_when_marked_so() -> None:
    class Newer:
        @hookimpl(optionalhook=True)
        def collab_register_translations(self, register: object) -> None:
            raise AssertionError("never called")

    manager = plugin_manager()
    manager.register(Newer(), "newer")
    build_registry(manager)
