"""The verbs say what their arguments mean, and commands call them by the same names."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from importlib import import_module

import click
import pytest

import collab_plugin as cp
import collab_plugin.api
from collab_plugin.cli.main import COMMANDS, main

VERBS = sorted(name for name, home in cp._HOME.items() if home.startswith("api."))
# What a command has beside its verb: the files it writes, how it prints, and what two verbs share.
OWN = {"as_json", "out"}
SHARED = {"evaluate": {"evaluate_tasks"}, "report": {"write_report"}, "inspect": {"check"}}
# One object in Python, an option for each of its fields on the command line.
SETUP = {field.name for field in dataclasses.fields(cp.RunSetup)}
# `calibrate` goes on with `probe` and writes what it gives, too; `place` draws what `hit_rates` finds.
FILES = {"calibrate": {"sensitivity"}, "place": {"plot"}}


def parameters(verb: str) -> set[str]:
    function: Callable[..., object] = getattr(cp, verb)
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_is_explained(verb: str) -> None:
    said = f"{getattr(cp, verb).__doc__}\n{collab_plugin.api.__doc__}"
    assert "Example: ``cp." in said
    assert parameters(verb) <= set(re.findall(r"``(\w+)``", said))


@pytest.mark.parametrize("name", sorted(set(COMMANDS) & set(VERBS)))
def test_options_are_called_as_the_arguments(name: str) -> None:
    command: click.Command = import_module(f"collab_plugin.cli.{COMMANDS[name]}").command
    known = set().union(*(parameters(verb) for verb in (name, *SHARED.get(name, ()))))
    own = OWN | FILES.get(name, set()) | (SETUP if "setup" in known else set())
    assert {str(option.name) for option in command.params} - known <= own
    assert isinstance(main.get_command(click.Context(main), name), click.Command)


@pytest.mark.parametrize("name", ["inspect", "calibrate", "plan", "compress", "report", "run", "probe"])
def test_every_argument_is_an_option(name: str) -> None:
    """But for objects that Python alone can hand over."""
    command: click.Command = import_module(f"collab_plugin.cli.{COMMANDS[name]}").command
    left_out = {"kernels", "progress", "warn", "write", "setup"}
    assert parameters(name) - left_out <= {str(option.name) for option in command.params}
