"""A mistake in Python names the parameter, on the command line the option."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import collab_plugin as cp
from collab_plugin.cli.main import main
from collab_plugin.cli.option_names import with_options


@click.command()
@click.argument("model")
@click.option("-o", "--output", "out")
@click.option("--experts-used")
@click.option("--map/--no-map", "mapped")
def command() -> None: ...


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("lower `experts_used` to 3", "lower --experts-used to 3"),
        ("`out` x is a file", "--output x is a file"),
        ("give `model`, or `mapped`", "give MODEL, or --map"),
        ("`keep` and `verify --list` are of others", "`keep` and `verify --list` are of others"),
    ],
)
def test_parameters_are_shown_as_options(message: str, shown: str) -> None:
    assert with_options(message, command) == shown
    assert with_options(message, None) == message


def test_the_same_mistake_in_python_and_on_the_command_line(qwen3moe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(cp.CollabError) as caught:
        cp.compress(qwen3moe, cp.plan(qwen3moe, keep_types=True), out, format="safetensors")
    assert "`format` safetensors prunes Hugging Face folders" in str(caught.value)
    cp.write_plan(tmp_path / "plan.json", cp.plan(qwen3moe, keep_types=True))
    arguments = ("compress", qwen3moe, "--plan", tmp_path / "plan.json", "--format", "safetensors", "-o", out)
    said = CliRunner().invoke(main, [str(a) for a in arguments]).stderr.splitlines()
    assert said[-1] == f"error: {caught.value}".replace("`format`", "--format")


def test_options_of_plugins_commands_are_shown(qwen3moe: Path, tmp_path: Path) -> None:
    arguments = ("export", "ollama", qwen3moe, "--name", "x", "--num-ctx", 10**6, "-o", tmp_path / "x")
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --num-ctx 1000000 is more than the model's ")
