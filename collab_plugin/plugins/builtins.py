"""What is built in: formats, families, criteria, allocators, placement policies, through the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collab_plugin.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from collab_plugin.checkpoint.checkpoint import CheckpointFormat
    from collab_plugin.checkpoint.families.family import Family
    from collab_plugin.placement.policy import PlacementPolicy
    from collab_plugin.planning.allocators.allocator import Allocator
    from collab_plugin.planning.criteria.criterion import ImportanceCriterion
    from collab_plugin.plugins.command import PluginCommand


@hookimpl
def collab_register_checkpoint_formats(register: Callable[[CheckpointFormat], None]) -> None:
    from collab_plugin.checkpoint.gguf import GGUF_FORMAT
    from collab_plugin.checkpoint.safetensors import safetensors_format
    from collab_plugin.plugins.manager import known_families

    register(GGUF_FORMAT)
    register(safetensors_format(known_families))


@hookimpl
def collab_register_families(register: Callable[[Family], None]) -> None:
    from collab_plugin.checkpoint.families.builtin_families import FAMILIES

    for family in FAMILIES:
        register(family)


@hookimpl
def collab_register_criteria(register: Callable[[ImportanceCriterion], None]) -> None:
    from collab_plugin.planning.criteria.builtin_criteria import CRITERIA

    for criterion in CRITERIA:
        register(criterion)


@hookimpl
def collab_register_allocators(register: Callable[[Allocator], None]) -> None:
    from collab_plugin.planning.allocators.knapsack import KNAPSACK, UNIFORM

    register(KNAPSACK)
    register(UNIFORM)


@hookimpl
def collab_register_placement_policies(register: Callable[[PlacementPolicy], None]) -> None:
    from collab_plugin.placement.builtin_policies import POLICIES

    for policy in POLICIES:
        register(policy)


@hookimpl
def collab_register_commands(register: Callable[[PluginCommand], None]) -> None:
    from collab_plugin.plugins.command import PluginCommand

    register(PluginCommand("export", "Write what another program needs beside an artifact."))
