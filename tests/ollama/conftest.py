from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_ollama import MODELS, TRAINED, Ollama, Running, collab, native, running


@pytest.fixture(scope="session")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Ollama:
    given = os.environ.get("COLLAB_OLLAMA")
    program = Path(given) if given else native() / "bin" / "ollama"
    return Ollama(program.resolve(), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def server(ollama: Ollama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(ollama, tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained models, compressed for Ollama."""
    folder = tmp_path_factory.mktemp("artifacts")
    found = {}
    for model in TRAINED:
        plan, out = folder / f"{model}.json", folder / f"{model}.gguf"
        options = ("--budget", "4.6bpw", "--types", "Q4_K,Q8_0", "--for", "ollama", "-o", plan, "--threads", 1)
        for command in (
            ("plan", MODELS / model, *options),
            ("compress", MODELS / model, "--plan", plan, "-o", out, "--threads", 1),
        ):
            done = collab(*command)
            assert done.returncode == 0, done.stderr
        found[model] = out
    return found
