"""Plugins found, hooks called once, and what they registered looked up by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy

import collab_plugin
from collab_plugin.errors import CollabError
from collab_plugin.plugins import builtins, hookspecs
from collab_plugin.plugins.check_hooks import PREFIX, CheckedPlugins

if TYPE_CHECKING:  # help asks this module for commands alone; numpy and the rest would slow it
    from collab_plugin.checkpoint.checkpoint import CheckpointFormat
    from collab_plugin.checkpoint.families.family import Family
    from collab_plugin.engines.engine import Engine
    from collab_plugin.engines.supported_types import Loader
    from collab_plugin.engines.target import TargetProvider
    from collab_plugin.evaluation.task_runner import TaskRunner
    from collab_plugin.placement.policy import PlacementPolicy
    from collab_plugin.planning.allocators.allocator import Allocator
    from collab_plugin.planning.criteria.criterion import ImportanceCriterion
    from collab_plugin.plugins.command import PluginCommand
    from collab_plugin.quantize.kernels import Kernels


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Any)
BUILTINS = "builtins"
CONTRACTS = {
    "checkpoint_formats": "CheckpointFormat",
    "families": "Family",
    "criteria": "ImportanceCriterion",
    "allocators": "Allocator",
    "placement_policies": "PlacementPolicy",
    "kernels": "Kernels",
    "engines": "Engine",
    "loaders": "Loader",
    "targets": "TargetProvider",
    "task_runners": "TaskRunner",
    "commands": "PluginCommand",
}
"""Kind (a hook's name without "collab_register_", and the registry's table) -> public name of what is registered."""
KINDS = tuple(CONTRACTS)


@dataclass
class Registry:
    """Everything that was registered, by kind and name: plugins in order of registration, then built-ins."""

    checkpoint_formats: dict[str, CheckpointFormat] = field(default_factory=dict)
    families: dict[str, Family] = field(default_factory=dict)
    criteria: dict[str, ImportanceCriterion] = field(default_factory=dict)
    allocators: dict[str, Allocator] = field(default_factory=dict)
    placement_policies: dict[str, PlacementPolicy] = field(default_factory=dict)
    kernels: dict[str, Kernels] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    loaders: dict[str, Loader] = field(default_factory=dict)
    targets: dict[str, TargetProvider] = field(default_factory=dict)
    task_runners: dict[str, TaskRunner] = field(default_factory=dict)
    commands: dict[str, PluginCommand] = field(default_factory=dict)
    providers: dict[tuple[str, str], str] = field(default_factory=dict)
    """(kind, name) -> plugin name."""


def plugin_manager() -> pluggy.PluginManager:
    """Return a manager with the built-ins and the installed plugins of the entry-point group.

    ``COLLAB_LOAD_PLUGINS`` restricts installed plugins to a comma-separated list (empty: none).
    """
    manager = CheckedPlugins(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    only = os.environ.get("COLLAB_LOAD_PLUGINS")
    installed = {entry.name for entry in entry_points(group=hookspecs.PROJECT)}
    names = sorted(installed) if only is None else [part.strip() for part in only.split(",") if part.strip()]
    for name in names:
        if name not in installed:
            raise CollabError(f"COLLAB_LOAD_PLUGINS names {name!r}, which is not installed")
        with _naming(name):
            manager.load_setuptools_entrypoints(hookspecs.PROJECT, name)
    manager.register(builtins, BUILTINS)
    return manager


@contextmanager
def _naming(plugin: str) -> Iterator[None]:
    """Someone else's code runs here: whatever it raises is told as one line that names it."""
    try:
        yield
    except CollabError:
        raise
    except Exception as error:
        raise CollabError(
            f"plugin {plugin!r} cannot be loaded ({type(error).__name__}: {error}): mend or uninstall it, "
            "or leave it out with COLLAB_LOAD_PLUGINS"
        ) from error


def build_registry(manager: pluggy.PluginManager, kinds: Sequence[str] = KINDS) -> Registry:
    """Call the hooks of these kinds once and return what was registered.

    Raises CollabError when two plugins register the same name of one kind. ``COLLAB_TRACE_PLUGINS=1``
    prints every hook called, and on whom, to stderr.
    """
    registry = Registry()
    for kind in kinds:
        hook = getattr(manager.hook, PREFIX + kind)
        # Built-ins last, whenever a plugin was registered; otherwise in order of registration.
        impls = sorted(hook.get_hookimpls(), key=lambda impl: impl.plugin_name == BUILTINS)
        if os.environ.get("COLLAB_TRACE_PLUGINS"):
            print(f"hook {hook.name}: {', '.join(impl.plugin_name for impl in impls)}", file=sys.stderr)
        for impl in impls:
            with _naming(impl.plugin_name):
                impl.function(register=_adder(registry, kind, impl.plugin_name))
    return registry


def _adder(registry: Registry, kind: str, plugin: str) -> Callable[[Named], None]:
    table: dict[str, Any] = getattr(registry, kind)
    contract: type = getattr(collab_plugin, CONTRACTS[kind])

    def register(thing: Named) -> None:
        if not isinstance(thing, contract):
            raise CollabError(f"plugin {plugin!r}: {PREFIX}{kind} takes {contract.__name__}, not {thing!r:.60}")
        other = registry.providers.get((kind, thing.name))
        if other is not None:
            raise CollabError(
                f"plugins {other} and {plugin} both register {kind} {thing.name!r}: uninstall one, "
                "or leave it out with COLLAB_LOAD_PLUGINS"
            )
        registry.providers[kind, thing.name] = plugin
        table[thing.name] = thing

    return register


@cache
def registry() -> Registry:
    """Return the registry of this process, made on first use."""
    return build_registry(plugin_manager())


@cache
def plugin_commands() -> dict[str, PluginCommand]:
    """Return the commands that plugins add, without making the rest of the registry."""
    return build_registry(plugin_manager(), ("commands",)).commands


@cache
def known_families() -> tuple[Family, ...]:
    """Return the families of models, plugins' first, without making the rest of the registry."""
    return tuple(build_registry(plugin_manager(), ("families",)).families.values())


def pick(table: dict[str, T], name: str, what: str) -> T:
    """Return ``table[name]``; CollabError listing what exists when there is none."""
    if name in table:
        return table[name]
    known = ", ".join(sorted(table)) or "none installed"
    raise CollabError(f"unknown {what} {name!r}; known: {known}")


def first_kernels() -> Kernels:
    """Return the quantization kernels to use; CollabError saying what to install when there are none."""
    for kernels in registry().kernels.values():
        return kernels
    raise CollabError("no quantization kernels: pip install 'collab-plugin[llamacpp]'")


def first_task_runner() -> TaskRunner:
    """Return what runs benchmark tasks; CollabError saying what to install when there is none."""
    for runner in registry().task_runners.values():
        return runner
    raise CollabError("nothing runs `tasks`: pip install 'collab-plugin[tasks]'")
