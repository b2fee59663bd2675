"""No file names a path, a Python file or a module of this repository that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from our_packages import PACKAGES, ROOT

TOPS = "|".join((*PACKAGES, "adapters", "conformance", "benchmarks", "docs", "tests", r"\.ci", "facts", "shared"))
PATH = re.compile(rf"(?<![\w/.\-])((?:{TOPS})/[\w./\-]*\w)")
PYTHON_FILE = re.compile(r"(?<![\w/.\-*])([a-z_0-9]+\.py)\b")
MODULE = re.compile(rf"(?<![\w/.\-])((?:{'|'.join(PACKAGES)})(?:\.[a-zA-Z_]\w*)+)")
# Names that are right though nothing here has them, and whose they are.
ELSEWHERE = {
    "convert_hf_to_gguf.py": "llama.cpp's converter",
    "quants.py": "gguf-py's",
    "constants.py": "gguf-py's",
    "moe_pruner.py": "the paper's release",
    "generate.py": "the paper's release",
    "tests/test-backend-ops.cpp": "llama.cpp's",
    "script.py": "an argument that a test gives",
    "code.py": "an import that a test hides",
    "rotten_module.py": "a module that a test writes",
    "needs_unix.py": "a module that a test writes",
    "conformance/make_suite": "a pattern in a test",
    "collab_plugin.Alocator": "a misspelt name in a test",
}
# Recorded output, and text that models are trained and judged on.
UNREAD = (
    "docs/reports/",
    "tests/texts/",
    "tests/behaviour/recorded/",
    "CHANGELOG.md",
    "tests/repository/test_paths.py",
)
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".jinja", ".txt", ".cfg", ""}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def is_module(name: str) -> bool:
    """A module or package of ours, or a name in one."""
    first, *rest = name.split(".")
    folder = PACKAGES[first] / first
    for part in rest:
        if (folder / f"{part}.py").exists():
            return True
        if not (folder / part).is_dir():
            return re.search(rf"\b{part}\b", (folder / "__init__.py").read_text()) is not None or part.startswith("__")
        folder /= part
    return True


def is_path(name: str) -> bool:
    return any((ROOT / start / name).exists() for start in ("", "adapters", "conformance"))


def wrong_names(text: str, python_files: set[str]) -> set[str]:
    paths = {name for name in PATH.findall(text) if not is_path(name)}
    files = {name for name in PYTHON_FILE.findall(text) if name not in python_files}
    return {*paths, *files, *(name for name in MODULE.findall(text) if not is_module(name))} - set(ELSEWHERE)


def test_every_path_that_is_named_is_there() -> None:
    files = tracked()
    python_files = {Path(name).name for name in files if name.endswith(".py")}
    read = [name for name in files if Path(name).suffix in SUFFIXES and not name.startswith(UNREAD)]
    found = {name: wrong_names((ROOT / name).read_text("utf-8"), python_files) for name in read}
    assert {name: sorted(wrong) for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "text",
    ["see docs/nowhere.md", "(facts/anchors.md §1)", "what nothing.py says", "`collab_plugin.nowhere.thing`",
     "collab_vllm/gone.py"],
)  # fmt: skip
def test_a_wrong_name_is_seen(text: str) -> None:
    assert wrong_names(text, {"something.py"})


def test_no_path_of_one_machine() -> None:
    found = {
        name: re.findall(r"(?:/work|/home/\w+|/root)/[\w./]+", (ROOT / name).read_text("utf-8"))
        for name in tracked()
        if Path(name).suffix in SUFFIXES and not name.startswith(UNREAD)
    }
    assert {name: paths for name, paths in found.items() if paths} == {}
