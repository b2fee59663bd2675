"""Ollama as an engine of `run`: the real one, which continues a prompt as llama.cpp does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_ollama.ollama_engine import OllamaEngine
from real_ollama import Ollama, collab

from collab_plugin.cli.main import main
from collab_plugin.engines.engine import Decoding
from collab_plugin.errors import CollabError

NAME = "tiny-qwen3moe"
PROMPT = "In the beginning God created"


@pytest.fixture(autouse=True)
def environment(ollama: Ollama, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (ollama.environment | {"COLLAB_OLLAMA": str(ollama.program)}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_run_with_ollama(artifacts: dict[str, Path]) -> None:
    """Text comes as llama.cpp makes it, and nothing is left beside the model."""
    model = artifacts[NAME]
    before = sorted(path.name for path in model.parent.iterdir())
    done = collab("run", model, "--engine", "ollama", "-p", PROMPT, "-n", 12, "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    theirs = LlamaCppEngine().generate(model, PROMPT, Decoding(12), threads=1, write=lambda text: None)
    assert found["text"] == theirs.text
    assert (found["tokens"], found["prompt_tokens"]) == (12, theirs.prompt_tokens)
    assert found["tokens_per_second"] > 0
    assert found["prompt_tokens_per_second"] > 0
    assert sorted(path.name for path in model.parent.iterdir()) == before


@pytest.mark.slow
def test_text_comes_in_pieces_and_the_seed_decides(artifacts: dict[str, Path]) -> None:
    engine, warm = OllamaEngine(), {seed: Decoding(16, temperature=1.5, seed=seed, ctx=64) for seed in (7, 8)}
    pieces: list[str] = []
    made = engine.generate(artifacts[NAME], PROMPT, warm[7], threads=1, write=pieces.append)
    assert made.text == "".join(pieces)
    assert len(pieces) > 3
    again, other = (
        engine.generate(artifacts[NAME], PROMPT, warm[seed], threads=1, write=lambda text: None) for seed in (7, 8)
    )
    assert again.text == made.text
    assert other.text != made.text


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_is_refused(artifacts: dict[str, Path]) -> None:
    """Ollama would cut its front off silently."""
    with pytest.raises(CollabError, match=r"Ollama refused to generate: .*context"):
        OllamaEngine().generate(
            artifacts[NAME], f"{PROMPT} " * 200, Decoding(4, ctx=256), threads=1, write=lambda text: None
        )


def test_its_version_is_the_program_s() -> None:
    name, number = OllamaEngine().version().split()
    assert name == "Ollama"
    assert number.count(".") == 2


def test_without_ollama_nothing_is_converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLLAB_OLLAMA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(__file__).parents[1] / "models" / NAME
    done = CliRunner().invoke(main, ["run", str(folder), "-p", PROMPT, "--engine", "ollama"])
    assert done.exit_code == 2
    assert "nowhere, which is no program" in done.stderr
    assert not list(tmp_path.iterdir())
