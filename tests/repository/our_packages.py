"""Where the packages of this repository lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Name of a package -> the folder that it is in.
PACKAGES = {
    path.name: start
    for start in (ROOT, ROOT / "adapters", ROOT / "conformance")
    for path in sorted(start.glob("collab_*"))
    if (path / "__init__.py").exists()
}
