"""What engines can do is declared, true, and checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from collab_plugin.cli.main import main
from collab_plugin.compression.as_gguf import all_runnable, runnable
from collab_plugin.engines.engine import Ability, Engine
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import registry
from collab_plugin.plugins.open_checkpoint import open_checkpoint

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "models" / "tiny-qwen3moe"
TEXT = TESTS / "texts" / "english.validation.txt"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder: whoever makes a GGUF leaves it there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", sorted(registry().engines))
def test_declared_abilities_are_the_methods_it_has(name: str) -> None:
    engine = type(registry().engines[name])
    has = {ability for ability in get_args(Ability) if getattr(engine, ability) is not getattr(Engine, ability)}
    assert engine.abilities == has
    assert engine.reads


class Measures(Engine):
    """Calibrates folders, and nothing else."""

    name = "measures"
    abilities = frozenset({"calibrate"})
    reads = ("safetensors",)

    def version(self) -> str:
        return "1"


class Talks(Measures):
    """Generates from GGUF files."""

    name = "talks"
    abilities = frozenset({"generate", "evaluate"})
    reads = ("gguf",)


def test_an_engine_runs_what_it_reads(cache: Path, qwen3moe: Path) -> None:
    folder, gguf = open_checkpoint(FOLDER), open_checkpoint(qwen3moe)
    assert runnable(Measures(), "calibrate", folder, 1) == FOLDER
    assert runnable(Talks(), "generate", gguf, 1) == qwen3moe
    assert not cache.exists(), "nothing had to be converted"
    made, same = all_runnable(Talks(), "evaluate", (folder, gguf), 1)
    assert same == qwen3moe
    assert open_checkpoint(made).format == "gguf"
    assert made.is_relative_to(cache)


def test_what_an_engine_cannot_do_is_told_before_any_work(cache: Path, qwen3moe: Path) -> None:
    folder, gguf = open_checkpoint(FOLDER), open_checkpoint(qwen3moe)
    with pytest.raises(CollabError) as error:
        runnable(Talks(), "serve", folder, 1)
    assert str(error.value) == (
        "engine 'talks' cannot serve models to tasks: it can compare models on text and generate text; "
        "choose another (see `plugins`)"
    )
    with pytest.raises(
        CollabError, match=r"engine 'measures' runs folders of safetensors, and .*gguf is in the format"
    ):
        all_runnable(Measures(), "calibrate", (folder, gguf), 1)
    assert not cache.exists()


def test_vllm_measures_no_candidates(cache: Path, tmp_path: Path) -> None:
    """They are GGUF files, which it does not read: told before the first is made."""
    asked = ("plan", FOLDER, "--budget", "4bpw", "--confirm", 1, "--text", TEXT, "-o", tmp_path / "plan.json")
    result = CliRunner().invoke(main, [*map(str, asked), "--engine", "vllm"])
    assert result.exit_code == 2
    assert "engine 'vllm' runs folders of safetensors, and what is measured is in the format gguf" in result.stderr
    assert not list(tmp_path.iterdir())


COMMANDS = (
    (("run", FOLDER, "-p", "a"), "generate text"),
    (("calibrate", FOLDER, "--text", TEXT, "-o", "stats.gguf"), "calibrate"),
    (("evaluate", FOLDER, "--against", FOLDER, "--text", TEXT), "compare models on text"),
    (("evaluate", FOLDER, "--tasks", "mmlu"), "serve models to tasks"),
    (
        ("plan", FOLDER, "--budget", "4bpw", "--confirm", "1", "--text", TEXT, "-o", "p.json"),
        "write references to compare",
    ),
)


@pytest.mark.parametrize(("arguments", "cannot"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_no_command_copies_a_model_for_an_engine_that_cannot(
    arguments: tuple[object, ...], cannot: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing(Measures):
        name = "nothing"
        abilities = frozenset()

    monkeypatch.setitem(registry().engines, "nothing", Nothing())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*map(str, arguments), "--engine", "nothing"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: engine 'nothing' cannot {cannot}")
    assert not list(tmp_path.iterdir()), "neither a copy nor a result"
