"""The whole extension surface: one function a hook. How to write a plugin, with an example of each: docs/plugins.md.

A plugin is a module registered in the entry-point group ``collab_plugin``; it implements any of these with
``@collab_plugin.hookimpl``. Each hook is called once, when the registry is made: on the first command or call that
needs it, for `collab_register_commands` whenever help is shown. It gets ``register`` to call once for each thing that
the plugin adds. A thing of another kind, two things of one name, a misspelt hook: CollabError that names the plugins.

Below stands who calls what is registered, and when. Shapes, units and errors are in the docstrings of the types.
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
    """Add ways to open a model.

    `open_checkpoint` asks ``matches(files)`` of each, plugins before built-ins, and takes the first that says yes;
    every command that reads a model begins there. The `Checkpoint` is read from many threads.
    """


@hookspec
def collab_register_families(register: Callable[[Family], None]) -> None:
    """Add families of models: what is the same in all checkpoints of one architecture.

    Opening a Hugging Face folder looks for the class of its config.json; vLLM's load format does so before it reads
    weights; the reference of ``verify`` looks for the GGUF's architecture.
    """


@hookspec
def collab_register_criteria(register: Callable[[ImportanceCriterion], None]) -> None:
    """Add importance criteria for ``plan --criterion NAME``.

    ``plan`` calls ``score(routing, options)`` for each layer with E experts and gets f64[E], finite, more being better;
    ``report`` calls it again to show the scores. It must give the same numbers each time.
    """


@hookspec
def collab_register_allocators(register: Callable[[Allocator], None]) -> None:
    """Add bit allocators for ``plan --allocator NAME``.

    ``plan`` calls ``solve`` once numbers of experts are decided, with the candidate types of every tensor: exact bytes
    in the file, and what each is predicted to cost. The bytes of the answer must be within the budget.
    """


@hookspec
def collab_register_placement_policies(register: Callable[[PlacementPolicy], None]) -> None:
    """Add placement policies: which experts lie in the fast memory when not all can, and which leave it later.

    ``place`` calls ``rooms`` once for each tier and ``hot(use, number)`` for each layer, and replays a trace with what
    ``dynamic`` makes. vLLM's load format calls ``hot`` once for each MoE layer, before weights are read.
    """


@hookspec
def collab_register_kernels(register: Callable[[Kernels], None]) -> None:
    """Add quantization kernels; the first that is registered is used, plugins before others.

    ``plan`` measures quantization errors with them and ``compress`` writes with them, both from many threads: f32[rows,
    n] to uint8[rows, bytes a row] in ggml's block formats.
    """


@hookspec
def collab_register_engines(register: Callable[[Engine], None]) -> None:
    """Add engines for ``--engine NAME`` of calibrate, plan, evaluate and run.

    What an engine declares (abilities, formats) is checked before any work; then one method is called in this process,
    with paths, and tells its progress in tokens.
    """


@hookspec
def collab_register_loaders(register: Callable[[Loader], None]) -> None:
    """Add programs for ``plan --for NAME``: the plan then has only types that the program loads.

    Looked up once, before planning; tensors that would only be copied are checked when the plan is made.
    """


@hookspec
def collab_register_targets(register: Callable[[TargetProvider], None]) -> None:
    """Add targets for ``verify --target NAME``: an engine and the devices that it has on this machine.

    ``verify`` calls ``find()`` in its own process, which must not abort; ``open(name)`` is called in
    a child process, one for each target, where native code may die.
    """


@hookspec
def collab_register_task_runners(register: Callable[[TaskRunner], None]) -> None:
    """Add what runs benchmark tasks for ``evaluate --tasks``: the first one that is registered does it.

    ``load`` is called once; ``run`` once for the model and once for the original, each served on loopback by an engine.
    """


@hookspec
def collab_register_commands(register: Callable[[PluginCommand], None]) -> None:
    """Add commands and groups of commands.

    Asked whenever help is shown: import nothing heavy here. A command's module is imported when it is typed.
    """
