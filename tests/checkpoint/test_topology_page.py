"""docs/formats/topology.md names what `inspect --json` prints, all of it and nothing more."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from collab_plugin.cli.main import main
from collab_plugin.formats.tensor_names import Role

PAGE = Path(__file__).parents[2] / "docs" / "formats" / "topology.md"


def _first_column(section: str) -> list[str]:
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_members_and_roles_are_documented(deepseek2: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(deepseek2), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    members, roles = PAGE.read_text().split("## Roles")
    assert _first_column(members) == list(printed)
    assert set(_first_column(roles)) == {str(role) for role in Role}
    assert set(printed["role_bytes"]) <= {str(role) for role in Role}
