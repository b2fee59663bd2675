"""How a target's child process is started: every child of ours that opens a target."""

from __future__ import annotations

from collab_plugin.engines.child_process import ChildProgram
from collab_plugin.engines.target import TargetProvider


def target_program(module: str, provider: TargetProvider, name: str) -> ChildProgram:
    """``module`` in the Python and environment that the target ``name`` of ``provider`` needs."""
    # Else ggml runs gdb on an abort, which takes seconds.
    environment = {"GGML_NO_BACKTRACE": "1", **provider.environment(name)}
    return ChildProgram(module, name, tuple(provider.command(name)), environment)
