"""Our packages for a Python that need not have them, and must not see what else is installed beside them here."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from collab_plugin import __version__

PACKAGES = ("collab_plugin", "collab_vllm", "collab_conformance")
PLUGIN = "vllm"


def python_path(python: str) -> Mapping[str, str]:
    """Environment variables with which ``python`` imports our packages; none when it is this one."""
    return {} if python == sys.executable else {"PYTHONPATH": _folder().name}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder with our packages alone, as if installed with vLLM's plugin; it lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="collab-vllm-")
    for name in PACKAGES:
        found = find_spec(name)
        if found is not None and found.origin is not None:
            Path(folder.name, name).symlink_to(Path(found.origin).parent)
    metadata = Path(folder.name, f"collab_plugin-{__version__}.dist-info")
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: collab-plugin\nVersion: {__version__}\n")
    (metadata / "entry_points.txt").write_text(f"[collab_plugin]\n{PLUGIN} = collab_vllm.plugin\n")
    return folder
