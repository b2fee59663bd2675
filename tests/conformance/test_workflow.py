"""The workflow for maintainers: YAML that parses, commands that the command line takes, names that do not clash."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from collab_plugin.cli import main

PATH = Path(__file__).parents[2] / "docs" / "workflows" / "conformance.yml"
# As their own pages show them; v4 of the two artifact actions has `pattern` and `merge-multiple`.
ACTIONS = {
    "actions/checkout@v5": set(),
    "actions/setup-python@v6": {"python-version"},
    "actions/upload-artifact@v4": {"name", "path", "if-no-files-found"},
    "actions/download-artifact@v4": {"pattern", "path", "merge-multiple"},
}


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(PATH.read_text())["jobs"]
    return found


def steps(jobs: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in jobs.values() for step in job["steps"]]


def filled(text: str, machine: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: machine[found[1]], text)


def test_runs_on_three_systems(jobs: dict[str, Any]) -> None:
    machines = jobs["verify"]["strategy"]["matrix"]["include"]
    assert [machine["runner"] for machine in machines] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert jobs["verify"]["runs-on"] == "${{ matrix.runner }}"
    assert jobs["page"]["needs"] == "verify"
    # A job whose need failed is left out without this.
    assert jobs["page"]["if"] == "always()"


def test_uses_known_actions_with_their_own_inputs(jobs: dict[str, Any]) -> None:
    for step in steps(jobs):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert set(step.get("with", {})) <= ACTIONS[step["uses"]], step


def test_commands_are_ours(jobs: dict[str, Any]) -> None:
    machine = jobs["verify"]["strategy"]["matrix"]["include"][0]
    commands = [filled(step["run"], machine) for step in steps(jobs) if "run" in step]
    ours = [shlex.split(text)[1:] for text in commands if text.startswith("collab-plugin ")]
    assert [words[:2] for words in ours] == [["verify", "--list"], ["verify", "--suite"], ["verify", "merge"]]
    context = click.Context(main)
    for words in ours:
        command = main.get_command(context, words[0])
        assert command is not None
        parsed = command.make_context(words[0], words[1:], parent=context)
        assert parsed.params


def test_artifacts_have_names_of_their_own(jobs: dict[str, Any]) -> None:
    machines = jobs["verify"]["strategy"]["matrix"]["include"]
    uploads = [step for step in jobs["verify"]["steps"] if "upload" in step.get("uses", "")]
    (upload,) = uploads
    assert upload["if"] == "always()"
    names = {filled(upload["with"]["name"], machine) for machine in machines}
    assert len(names) == len(machines)
    # merge-multiple puts all files into one folder.
    files = [line for machine in machines for line in filled(upload["with"]["path"], machine).split()]
    assert len(set(files)) == len(files)
    (download,) = [step for step in jobs["page"]["steps"] if "download" in step.get("uses", "")]
    prefix = download["with"]["pattern"].removesuffix("*")
    assert all(name.startswith(prefix) for name in names)
    assert "matrix" not in names
