"""Every module of the core imports where there are no Unix modules, as on Windows."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import collab_plugin

UNIX = ("fcntl", "grp", "posix_ipc", "pty", "pwd", "resource", "syslog", "termios", "tty")
IMPORT = """
import importlib, sys
import psutil  # has other modules of its own on each system: those of this one need Unix
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

for name in {absent!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not set({absent!r}) & set(sys.modules)
"""


def _run(modules: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT.format(absent=UNIX), *modules]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_core_imports_without_unix_modules() -> None:
    found = [module.name for module in pkgutil.walk_packages(collab_plugin.__path__, "collab_plugin.")]
    modules = sorted(name for name in found if not name.endswith("__main__"))
    assert "collab_plugin.compression.gguf_file" in modules
    assert len(modules) > 80
    done = _run(modules)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", UNIX[:1])
def test_a_module_that_needs_one_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_unix.py").write_text(f"import {name}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = _run(["needs_unix"])
    assert done.returncode != 0
    assert f"No module named {name!r}" in done.stderr
