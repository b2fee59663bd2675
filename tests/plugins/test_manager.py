"""Which plugins are loaded, and what looking up a name says."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

from collab_plugin import CollabError
from collab_plugin.plugins import hookspecs
from collab_plugin.plugins.manager import CONTRACTS, KINDS, Registry, build_registry, pick, plugin_manager


def test_installed_adapter_and_builtins_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLLAB_LOAD_PLUGINS", raising=False)
    providers = build_registry(plugin_manager()).providers
    assert providers["engines", "llamacpp"] == "llamacpp"
    assert providers["criteria", "freq-score"] == "builtins"


def test_load_plugins_empty_leaves_the_builtins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAB_LOAD_PLUGINS", "")
    assert set(build_registry(plugin_manager()).providers.values()) == {"builtins"}


def test_load_plugins_takes_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAB_LOAD_PLUGINS", " llamacpp ,")
    assert set(build_registry(plugin_manager()).providers.values()) == {"llamacpp", "builtins"}


def test_load_plugins_refuses_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAB_LOAD_PLUGINS", "llamacpp,nowhere")
    with pytest.raises(CollabError, match="'nowhere', which is not installed"):
        plugin_manager()


def test_pick_lists_what_is_known() -> None:
    assert pick({"b": 1, "a": 2}, "a", "thing") == 2
    with pytest.raises(CollabError, match="unknown thing 'c'; known: a, b"):
        pick({"b": 1, "a": 2}, "c", "thing")
    with pytest.raises(CollabError, match="none installed"):
        pick({}, "c", "engine")


def test_trace_prints_every_hook_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLLAB_TRACE_PLUGINS", "1")
    build_registry(plugin_manager())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(KINDS)
    assert "hook collab_register_criteria: builtins" in lines


def test_every_hook_has_its_table_in_the_registry() -> None:
    hooks = inspect.getmembers(hookspecs, inspect.isfunction)
    said = {name: str(inspect.signature(hook).parameters["register"].annotation) for name, hook in hooks}
    contracts = {name: re.findall(r"\[\[(\w+)\]", annotation)[0] for name, annotation in said.items()}
    assert contracts == {f"collab_register_{kind}": contract for kind, contract in CONTRACTS.items()}
    assert [field.name for field in fields(Registry)] == [*KINDS, "providers"]
