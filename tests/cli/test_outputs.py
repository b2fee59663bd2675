"""Every command that writes says before its work that it cannot, and replaces regular files alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan_file import write_plan

# Nothing of what is read is there: were an output checked after the work, its absence would be told instead.
COMMANDS: dict[str, tuple[str, ...]] = {
    "calibrate": ("calibrate", "none.gguf", "--text", "none.txt", "-o"),
    "plan": ("plan", "none.gguf", "--budget", "1GB", "-o"),
    "probe": ("probe", "none.gguf", "--stats", "none.gguf", "--text", "none.txt", "-o"),
    "report": ("report", "none.json", "-o"),
    "verify json": ("verify", "none.gguf", "--json"),
    "verify junit": ("verify", "none.gguf", "--junit"),
    "verify html": ("verify", "none.gguf", "--html"),
    "merge": ("verify", "merge", "none.json", "-o"),
}
FOLDERS: dict[str, tuple[str, ...]] = {
    "pack": ("verify", "pack", "none.gguf", "-o"),
}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (lambda out: out.mkdir(), "is a folder"),
    "a pipe": (lambda out: os.mkfifo(out), "is a pipe; only regular files are replaced"),
    "a link to a device": (lambda out: out.symlink_to("/dev/null"), "is a device; only regular files are replaced"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("wrong", WRONG)
def test_files(command: str, wrong: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    make, says = WRONG[wrong]
    make(out)
    before = out.lstat()
    assert says in _line(_run(*COMMANDS[command], out))
    assert (out.lstat().st_mode, out.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert "does not exist; make the folder first" in _line(_run(*COMMANDS[command], tmp_path / "no" / "out.json"))


@pytest.mark.parametrize("command", FOLDERS)
def test_folders(command: str, tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to("/dev/null")
    assert "there exists; name a folder that does not" in _line(_run(*FOLDERS[command], tmp_path / "there"))
    assert "does not exist; make the folder first" in _line(_run(*FOLDERS[command], tmp_path / "no" / "out"))


@pytest.mark.parametrize("format", ["gguf", "safetensors"])
def test_compress(format: str, qwen3moe: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write_plan(plan, copy_plan(open_gguf(qwen3moe)))
    out = tmp_path / "out"
    out.symlink_to("/dev/null")
    line = _line(_run("compress", "none.gguf", "--plan", plan, "-o", out, "--format", format))
    assert ("is a device; only regular" if format == "gguf" else "exists; name a folder") in line
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    tool = [sys.executable, "-c", "from collab_plugin.cli import main; main()"]
    name = os.fsencode(tmp_path) + b"/mod\xe9le.gguf"
    for arguments in (["inspect", name], ["inspect", "--json", name], ["plan", "x", "-o", name]):
        done = subprocess.run([*tool, *arguments], capture_output=True, check=False)
        assert done.returncode == 2
        assert done.stderr.endswith(b"mod\\xe9le.gguf' is not UTF-8; give the file another name\n"), done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", ["calibrate", "plan", "probe"])
def test_what_is_read_is_never_replaced(command: str, tmp_path: Path) -> None:
    model, folder = tmp_path / "model.gguf", tmp_path / "folder"
    model.write_bytes(b"a model")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    given = COMMANDS[command]
    line = _line(_run(given[0], model, *given[2:], model))
    assert line == f"error: {model} is what is read; name another file to write"
    assert model.read_bytes() == b"a model"
    out = folder / "config.json"
    assert "lies in the model's folder, which is never written to" in _line(_run(given[0], folder, *given[2:], out))
    assert out.read_text() == "{}"
