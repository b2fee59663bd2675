"""Hosted runners and pre-commit run what the Makefile runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def recipe(target: str) -> list[list[str]]:
    """Words of each command of a target of the Makefile, without $(VENV)/bin/ and with its default variables."""
    text = (ROOT / "Makefile").read_text()
    (block,) = re.findall(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", text, re.M)
    lines = [line.strip() for line in block.splitlines() if not line.strip().startswith("@")]
    workers = re.findall(r"^WORKERS \?= (\d+)$", text, re.M)[0]
    return [shlex.split(line.replace("$(VENV)/bin/", "").replace("$(WORKERS)", workers)) for line in lines]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[list[str]]:
    return [shlex.split(step["run"]) for step in job["steps"] if "run" in step]


def test_linux_runs_everything(jobs: dict[str, Any]) -> None:
    assert commands(jobs["everything"]) == [[".ci/run"]]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_the_core_is_what_make_fast_runs(jobs: dict[str, Any]) -> None:
    assert commands(jobs["core"]) == [*recipe("$(VENV)/core"), *recipe("lint"), *recipe("fast")]


def test_the_core_runs_on_three_systems(jobs: dict[str, Any]) -> None:
    machines = jobs["core"]["strategy"]["matrix"]["include"]
    assert [machine["runner"] for machine in machines] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert jobs["core"]["runs-on"] == "${{ matrix.runner }}"
    oldest = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest[0] in [machine["python"] for machine in machines]


def test_pre_commit_runs_the_same_tools() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    ours = [hook["entry"].split()[:2] for hook in repository["hooks"]]
    assert ours == [command[:2] for command in recipe("lint")]
