"""An installed plugin that cannot be loaded: one line that names it, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TYPO = "from collab_plugin import hookimpl\n@hookimpl\ndef collab_register_criteria(registre):\n    pass\n"
RAISES = "from collab_plugin import hookimpl\n@hookimpl\ndef collab_register_criteria(register):\n    1 / 0\n"


def plugins(site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("collab-plugin"), "plugins"],
        env=os.environ | {"PYTHONPATH": str(site)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "source",
    ["import nowhere_to_be_found\n", "def broken(:\n", "raise RuntimeError('two\\nlines')\n", TYPO, RAISES],
    ids=["import", "syntax", "raises", "signature", "hook"],
)
def test_broken_plugin_is_named_in_one_line(source: str, tmp_path: Path) -> None:
    (tmp_path / "rotten_module.py").write_text(source)
    info = tmp_path / "rotten-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rotten\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[collab_plugin]\nrotten = rotten_module\n")
    done = plugins(tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert "rotten" in done.stderr
    assert done.stderr.count("\n") == 1
    without = plugins(tmp_path, COLLAB_LOAD_PLUGINS="llamacpp")
    assert without.returncode == 0, without.stderr
