"""`fit`: will a model run on a machine."""

from __future__ import annotations

from collab_plugin.api.arguments import Model, opened, threads_of
from collab_plugin.errors import CollabError
from collab_plugin.placement.artifact_shape import shape_of_checkpoint
from collab_plugin.placement.machine_fit import Fit
from collab_plugin.placement.machine_fit import fit as weigh
from collab_plugin.placement.machines import Machine, machine_named, this_machine
from collab_plugin.placement.run_setup import DEFAULT_SETUP, RunSetup
from collab_plugin.planning.budget import parse_size


def fit(
    model: Model,
    *,
    machine: str | Machine | None = None,
    memory: str | int | None = None,
    setup: RunSetup = DEFAULT_SETUP,
    threads: int | None = None,
) -> Fit:
    """Return what running ``model`` takes, whether it fits, the largest context, and tokens a second at most.

    ``machine``: a known one by name ("strix-halo-128"), or an object; by default this one, whose bandwidth is measured
    in a moment, with ``memory`` ("128GB", bytes) in place of what is installed. ``setup``: context,
    sequences, type of the cache, and bytes left free. The speed is a roof: each active weight
    and each cached value read once a token at full bandwidth.

    Example: ``cp.fit("v3.gguf", machine="strix-halo-128").largest_context``
    """
    return weigh(shape_of_checkpoint(opened(model)), machine_of(machine, memory, threads), setup)


def machine_of(machine: str | Machine | None, memory: str | int | None, threads: int | None) -> Machine:
    """The machine that is meant. CollabError for an unknown name, and where both are given."""
    if machine is not None and memory is not None:
        raise CollabError("`memory` and `machine` say the same thing twice: give one")
    if machine is None:
        return this_machine(None if memory is None else parse_size(str(memory), "memory"), threads_of(threads))
    return machine_named(machine) if isinstance(machine, str) else machine
