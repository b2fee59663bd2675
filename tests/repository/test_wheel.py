"""The wheel: built of the checkout, installed into an environment without it, and used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from our_packages import PACKAGES, ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(ROOT)], check=True, capture_output=True, timeout=300)
    (found,) = folder.glob("collab_plugin-*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel in it. Dependencies, which nothing may download here,
    are those of this environment, put behind the new one's own packages; the checkout is on no path."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    command = [*PIP, "--python", python, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(own) / "dependencies.pth").write_text("\n".join(others) + "\n")
    return programs


def run(program: Path, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    without = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLLAB_LOAD_PLUGINS")}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=without, capture_output=True, text=True, check=False, timeout=120)


def test_everything_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        inside = set(packed.namelist())
    shipped = {
        path.relative_to(start).as_posix()
        for package, start in PACKAGES.items()
        for path in (start / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped <= inside
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    rest = {name for name in inside - shipped if ".dist-info/" not in name}
    assert rest == set(), "nothing but our packages"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_the_package_comes_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    names = ", ".join(PACKAGES)
    done = run(scripts / "python", "-c", f"import {names}; print(*(m.__file__ for m in ({names})))", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(Path(name).is_relative_to(scripts.parent) for name in done.stdout.split())


def test_the_command_works(scripts: Path, qwen3moe: Path, tmp_path: Path) -> None:
    told = run(scripts / "collab-plugin", "--help", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "calibrate" in told.stdout
    done = run(scripts / "collab-plugin", "inspect", qwen3moe, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "qwen3moe"
    listed = run(scripts / "collab-plugin", "plugins", "--json", folder=tmp_path)
    assert {"llamacpp", "ollama", "vllm"} <= {row["plugin"] for row in json.loads(listed.stdout)}
