"""Where programs are: the variable, then the settings file, then what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from collab_ollama.ollama_program import find_ollama
from collab_vllm.vllm_python import vllm_python

from collab_plugin.engines.program_settings import Setting, configured, settings_file
from collab_plugin.errors import CollabError

TOOL = Setting("tool", "COLLAB_TEST_TOOL")


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file that is not there yet; nothing is named and nothing on the PATH."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for variable in ("COLLAB_VLLM", "COLLAB_OLLAMA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    path = settings_file()
    path.parent.mkdir(parents=True)
    return path


def program(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_variable_goes_before_the_file(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(TOOL) is None
    settings.write_text("[programs]\ntool = '/from/file'\n")
    found = configured(TOOL)
    assert found is not None
    assert (found.value, found.source) == ("/from/file", f"tool in {settings}")
    monkeypatch.setenv("COLLAB_TEST_TOOL", "/from/variable")
    found = configured(TOOL)
    assert found is not None
    assert (found.value, found.source) == ("/from/variable", "COLLAB_TEST_TOOL")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[programs\n", "is no TOML: "),
        ("[programs]\ntool = 3\n", "tool under [programs] must be a path in quotes"),
        ("[programs]\ntool = ''\n", "tool under [programs] must be a path in quotes"),
        ("programs = 'x'\n", "[programs] must be a table"),
    ],
)
def test_a_file_that_cannot_be_understood(text: str, says: str, settings: Path) -> None:
    settings.write_text(text)
    with pytest.raises(CollabError) as error:
        configured(TOOL)
    assert str(settings) in str(error.value)
    assert says in str(error.value)


def test_where_vllm_s_python_is(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CollabError, match=r"vLLM is not installed here.*COLLAB_VLLM, or vllm_python under "):
        vllm_python()
    monkeypatch.setattr("collab_vllm.vllm_python.vllm_is_here", lambda: True)
    assert vllm_python() == sys.executable
    python = program(tmp_path / "python")
    settings.write_text(f"[programs]\nvllm_python = '{python}'\n")
    assert vllm_python() == str(python)
    python.unlink()
    with pytest.raises(CollabError, match=f"vllm_python in {settings} is {python}, which is no program"):
        vllm_python()


def test_where_ollama_is(settings: Path, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match=r"no Ollama program 'ollama'.*COLLAB_OLLAMA, or ollama under \[programs\]"):
        find_ollama()
    installed, named, given = (program(tmp_path / folder / "ollama") for folder in ("bin", "named", "given"))
    assert find_ollama() == installed
    settings.write_text(f"[programs]\nollama = '{named}'\n")
    assert find_ollama() == named
    assert find_ollama(str(given)) == given
    named.unlink()
    with pytest.raises(CollabError, match=f"ollama in {settings} is {named}, which is no program"):
        find_ollama()
