"""Targets of this machine, found through the plugins that bring them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from collab_plugin.engines.target import TargetInfo, TargetProvider
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import registry


def find_targets() -> list[TargetInfo]:
    """All targets of every plugin, absent ones included, in order of registration."""
    infos: list[TargetInfo] = []
    for name, provider in registry().targets.items():
        infos += _of(provider, registry().providers["targets", name])
    names = [info.name for info in infos]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CollabError(f"two targets are called {twice!r}: uninstall one, or leave it out with COLLAB_LOAD_PLUGINS")
    return infos


def _of(provider: TargetProvider, plugin: str) -> Sequence[TargetInfo]:
    """Someone else's code runs here: whatever it raises is told as one line that names it."""
    try:
        infos = list(provider.find())
    except CollabError:
        raise
    except Exception as error:
        raise CollabError(
            f"plugin {plugin!r} cannot tell its targets ({type(error).__name__}: {error}): mend or uninstall it, "
            "or leave it out with COLLAB_LOAD_PLUGINS"
        ) from error
    for info in infos:
        if info.name.partition(":")[0] != provider.name or info.engine != provider.name:
            raise CollabError(
                f"plugin {plugin!r} has a target {info.name!r} of engine {info.engine!r}; both must be "
                f"{provider.name!r}, the name before its first colon"
            )
    return infos


def choose(infos: Sequence[TargetInfo], wanted: Sequence[str]) -> list[TargetInfo]:
    """Those that ``wanted`` names, all when it is empty; CollabError for a name that matches none.

    A name is a target's, its leading parts ("llamacpp:vulkan"), or a pattern with * and ?.
    """
    chosen = [info for info in infos if not wanted or any(_matches(info.name, name) for name in wanted)]
    for name in wanted:
        if not any(_matches(info.name, name) for info in infos):
            known = ", ".join(info.name for info in infos) or "none"
            raise CollabError(f"no target is called {name!r}; known: {known} (see `collab-plugin verify --list`)")
    return chosen


def _matches(target: str, wanted: str) -> bool:
    return target == wanted or target.startswith(f"{wanted}:") or fnmatchcase(target, wanted)
