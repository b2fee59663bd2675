"""Documentation that cannot rot: hooks with exact signatures, the reference as written, links that lead somewhere."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from collab_plugin.plugins import hookspecs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("collab_"))


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented_with_its_signature(name: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "")
    text = (ROOT / "docs" / "plugins.md").read_text()
    assert f"### `{name}{signature}`" in text


def test_reference_is_current(tmp_path: Path) -> None:
    script = ROOT / "docs" / "write_reference.py"
    copy = tmp_path / script.name
    copy.write_text(script.read_text())
    (tmp_path / "formats").mkdir()
    subprocess.run([sys.executable, str(copy)], check=True)
    for name in (
        "cli.md",
        "formats/plan.schema.json",
        "formats/placement.schema.json",
        "formats/sensitivity.schema.json",
        "formats/pack.schema.json",
        "formats/report.schema.json",
    ):
        written = (ROOT / "docs" / name).read_text()
        assert written == (tmp_path / name).read_text(), f"run python docs/write_reference.py: {name} is old"


def test_table_of_families_is_current(tmp_path: Path) -> None:
    page = ROOT / "docs" / "checkpoints.md"
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    subprocess.run([sys.executable, str(ROOT / "docs" / "write_families.py"), str(copy)], check=True)
    assert copy.read_text() == page.read_text(), "run python docs/write_families.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [t for t in targets if "://" not in t]
    assert [t for t in local if not (page.parent / t).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [str(p.relative_to(ROOT / "docs")) for p in PAGES if p.is_relative_to(ROOT / "docs")]
    assert [p for p in pages if p != "index.md" and f"({p})" not in index] == []
