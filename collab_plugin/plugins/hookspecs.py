"""The whole extension surface: one function a hook. How to write a plugin: docs/plugins.md.

A plugin is a module registered in the entry-point group ``collab_plugin``; it implements any of
these with ``@collab_plugin.hookimpl``. Each hook is called once, when the manager is made, and
gets ``register`` to call once for each thing the plugin adds. Two things of one name: the command
line refuses to start and names both plugins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:  # at run time this page costs nothing: `collab-plugin --help` asks it for commands
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

PROJECT = "collab_plugin"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def collab_register_checkpoint_formats(register: Callable[[CheckpointFormat], None]) -> None:
    """Add ways to open a model; asked in order of registration, plugins before built-ins."""


@hookspec
def collab_register_families(register: Callable[[Family], None]) -> None:
    """Add families of models: how their Hugging Face folders become GGUF, and what vLLM and ``verify`` need of them."""


@hookspec
def collab_register_criteria(register: Callable[[ImportanceCriterion], None]) -> None:
    """Add importance criteria for ``plan --criterion NAME``: f64[experts] a layer, more is better."""


@hookspec
def collab_register_allocators(register: Callable[[Allocator], None]) -> None:
    """Add bit allocators for ``plan --allocator NAME``: one type a tensor within a byte budget."""


@hookspec
def collab_register_placement_policies(register: Callable[[PlacementPolicy], None]) -> None:
    """Add placement policies: which experts of a layer stay on the device when an engine keeps only some there."""


@hookspec
def collab_register_kernels(register: Callable[[Kernels], None]) -> None:
    """Add quantization kernels: plan measures errors with them, compress writes with them."""


@hookspec
def collab_register_engines(register: Callable[[Engine], None]) -> None:
    """Add engines for ``--engine NAME`` of calibrate, evaluate and run."""


@hookspec
def collab_register_loaders(register: Callable[[Loader], None]) -> None:
    """Add programs for ``plan --for NAME``: the plan then has only types that the program loads."""


@hookspec
def collab_register_targets(register: Callable[[TargetProvider], None]) -> None:
    """Add targets for ``verify --target NAME``: an engine and the devices that it has on this machine."""


@hookspec
def collab_register_task_runners(register: Callable[[TaskRunner], None]) -> None:
    """Add what runs benchmark tasks for ``evaluate --tasks``: the first one that is registered does it."""


@hookspec
def collab_register_commands(register: Callable[[PluginCommand], None]) -> None:
    """Add commands and groups of commands. Asked whenever help is shown: import nothing heavy here."""
