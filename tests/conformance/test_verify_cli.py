"""`verify` from outside: what it lists, refuses in one line, and where its report goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_target
import pytest
from click.testing import CliRunner
from collab_conformance.cli.verify import LEVEL_NAMES
from collab_conformance.report.document import LEVELS
from collab_conformance.report.report_file import write_report
from hand_reports import ABSENT, ALL, PASSED, report

from collab_plugin.cli import main

TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")


def verify(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*TOOL, "verify", *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)


def mistake(*arguments: object, **environment: str) -> str:
    """The one line that it is refused with."""
    done = verify(*arguments, **environment)
    assert done.returncode == 2, done.stderr + done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert done.stdout == ""
    return line


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with odd_target's targets alone."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    path = odd_target.installed(folder)
    return {"PYTHONPATH": path, odd_target.PATH: path, "COLLAB_LOAD_PLUGINS": "odd,conformance"}


def test_levels_are_those_of_the_report() -> None:
    assert LEVEL_NAMES == LEVELS


def test_help_shows_options_commands_and_an_example() -> None:
    result = CliRunner().invoke(main, ["verify", "--help"])
    assert result.exit_code == 0
    for text in ("--suite", "--against", "merge", "pack", "Example: collab-plugin verify"):
        assert text in result.output
    for name in ("pack", "merge"):
        result = CliRunner().invoke(main, ["verify", name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: main verify {name} [OPTIONS]")
        assert f"Example: collab-plugin verify {name}" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to verify: give an ARTIFACT, or --suite"),
        (("--json",), "nothing to verify"),
        (("nowhere.gguf",), "nowhere.gguf does not exist"),
        (("--threads", "1", "nowhere.gguf"), "nowhere.gguf does not exist"),
        (("--suite", "here.gguf"), "--suite verifies the suite's own models"),
        (("--suite", "--against", "pack"), "--against holds one ARTIFACT"),
        (("here.gguf", "--original", "x"), "--original and --text go together"),
        (("here.gguf", "--text", "x"), "--original and --text go together"),
        (("--suite", "--original", "x", "--text", "y"), "--original is the original of an ARTIFACT"),
        (("here.gguf", "here.gguf"), "the same file name"),
        (("--suite", "--json", "out.gguf"), "a report's name ends in .json"),
        (("--suite", "--junit", "nowhere/x.xml"), "nowhere does not exist"),
        (("--suite", "--html", "."), ". is a folder"),
        (("--suite", "--target", "nowhere"), "no target is called 'nowhere'; known: "),
        (("--suite", "--skips", "nowhere"), "cannot read nowhere"),
        (("--list", "--junit", "x.xml"), "--list makes no report"),
        (("merge", "nowhere.json", "-o", "x.html"), "cannot read the report nowhere.json"),
        (("pack", "here.gguf", "-o", "."), ". exists"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.gguf").write_bytes(b"GGUF")
    assert says in mistake(*arguments, COLLAB_LOAD_PLUGINS="conformance")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.gguf"]


def test_a_json_file_cannot_take_a_models_place(tmp_path: Path) -> None:
    model = tmp_path / "out.gguf"
    model.write_bytes(b"GGUF and more")
    assert "put --json last" in mistake("--json", model)
    assert model.read_bytes() == b"GGUF and more"


def test_list_needs_no_engine() -> None:
    done = verify("--list", COLLAB_LOAD_PLUGINS="conformance")
    assert (done.returncode, done.stdout.startswith("no target: no plugin")) == (0, True)
    done = verify("--list", "--json", COLLAB_LOAD_PLUGINS="conformance")
    assert (done.returncode, done.stdout.strip()) == (0, "[]")


def test_list_says_what_is_here_and_why_others_are_not(odd: dict[str, str]) -> None:
    done = verify("--list", **odd)
    assert done.returncode == 0, done.stderr
    here, absent = (line for line in done.stdout.splitlines() if "odd:" in line)
    assert "numpy (cpu)" in here
    assert np.__version__ in here
    assert "numpy has no GPU" in absent
    found = json.loads(verify("--list", "--json", **odd).stdout)
    assert [(info["name"], info["absent"]) for info in found] == [("odd:right", None), ("odd:gpu", "numpy has no GPU")]
    assert [i["name"] for i in json.loads(verify("--list", "--json", "--target", "odd:r*", **odd).stdout)] == [
        "odd:right"
    ]


def test_list_of_the_installed_engines() -> None:
    done = verify("--list", "--json")
    assert done.returncode == 0, done.stderr
    names = [info["name"] for info in json.loads(done.stdout)]
    assert "llamacpp:cpu" in names
    assert "ollama" in names


def test_list_without_ollama_says_so(tmp_path: Path) -> None:
    done = verify("--list", "--json", COLLAB_LOAD_PLUGINS="conformance,ollama", COLLAB_OLLAMA=str(tmp_path / "none"))
    (info,) = json.loads(done.stdout)
    assert (info["name"], info["device"]) == ("ollama", None)
    assert "no Ollama program" in info["absent"]


def test_merge_writes_one_page_of_many_machines(tmp_path: Path) -> None:
    paths = []
    for name, whole in (("a", ALL), ("b", report(PASSED, machine="another")), ("c", report(ABSENT, machine="third"))):
        paths.append(tmp_path / f"{name}.json")
        write_report(paths[-1], whole)
    page = tmp_path / "matrix.html"
    done = verify("merge", *paths, "-o", page, "--json")
    assert done.returncode == 0, done.stderr
    assert [r["passed"] for r in json.loads(done.stdout)["reports"]] == [False, True, False]
    text = page.read_text()
    assert "another" in text
    assert "third" in text
    done = verify("merge", *paths, "-o", page)
    assert "no target was run; 1 not run" in done.stdout


def test_merge_refuses_a_report_that_flatters_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_report(path, ALL)
    path.write_text(path.read_text().replace('"value": 0.7', '"value": 0.0001').replace('"fail"', '"pass"'))
    assert "'pass', but" in mistake("merge", path, "-o", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
