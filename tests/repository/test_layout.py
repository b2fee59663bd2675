"""Tests stand where what they test stands: a folder for each room of the core and each adapter."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What belongs to no room: recorded commands, models and texts, scripts that build, tests of the repository itself.
BESIDE = {"behaviour", "models", "native", "repository", "small_models", "texts"}


def folders(of: Path) -> set[str]:
    """Folders that hold Python files: caches and data are left out."""
    return {path.name for path in of.iterdir() if path.is_dir() and any(path.glob("*.py"))}


def test_tests_mirror_the_packages() -> None:
    adapters = {name.removeprefix("collab_") for name in folders(ROOT / "adapters")}
    rooms = folders(ROOT / "collab_plugin") | adapters | {"conformance"}
    assert folders(ROOT / "tests") - BESIDE == rooms


def test_the_core_has_few_entries() -> None:
    entries = [path.name for path in (ROOT / "collab_plugin").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20
