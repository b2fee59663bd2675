"""Load a model into a server of ours and read back what the placement became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from collab_ollama.server.client import Client
from collab_ollama.server.placement_environment import host_bytes
from collab_ollama.server.runner_process import Runner, buffers, host_model_mib, runners_of
from collab_ollama.server.server_process import Server
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import Placement

MIB = 2**20


@dataclass(frozen=True)
class Applied:
    """Read back from the runner of ``model``: the variables and the command line that it got, the MiB it
    took by device and purpose, bytes by Ollama's own count, tokens of context. ``host_expert_bytes``: what
    the placement keeps on the host. ``notes``: where it differs from what was asked."""

    model: str
    pid: int
    variables: Mapping[str, str]
    command: tuple[str, ...]
    buffers_mib: Mapping[str, Mapping[str, float]]
    bytes: int
    bytes_on_gpu: int
    context: int
    host_expert_bytes: int
    notes: tuple[str, ...]


def load(
    server: Server, client: Client, model: str, placement: Placement | None, variables: Mapping[str, str]
) -> Applied:
    """Load ``model`` and return what was applied; CollabError when it cannot be loaded or was not told."""
    if client.show(model) is None:
        raise CollabError(f"{client.url} has no model {model}; create it there first (`collab-plugin ollama create`)")
    client.generate({"model": model, "keep_alive": -1})
    running = next((entry for entry in client.running() if entry.get("name") == model), None)
    if running is None:
        raise CollabError(f"Ollama did not keep {model} loaded: {server.last_words()}")
    runner, kept = check_placed(server, placement, variables)
    sizes = buffers(server.log.read_text(errors="replace"), runner.option("--port") or "")
    context = int(running.get("context_length") or 0)
    return Applied(
        model=model,
        pid=runner.pid,
        variables=runner.variables,
        command=runner.command,
        buffers_mib=sizes,
        bytes=int(running.get("size") or 0),
        bytes_on_gpu=int(running.get("size_vram") or 0),
        context=context,
        host_expert_bytes=kept,
        notes=tuple(_notes(placement, context, kept, sizes)),
    )


def check_placed(server: Server, placement: Placement | None, variables: Mapping[str, str]) -> tuple[Runner, int]:
    """The last runner of ``server``, and the bytes of experts that the placement keeps on the host. CollabError when it
    was not told ``variables``, or the placement is for another model."""
    runners = runners_of(server.process.pid)
    if not runners:
        raise CollabError(f"Ollama keeps no model loaded: {server.last_words()}")
    runner = runners[-1]
    lost = [name for name, value in variables.items() if runner.variables.get(name) != value]
    if lost:
        raise CollabError(f"the runner did not get {lost[0]}={variables[lost[0]]}; this Ollama drops it")
    return runner, _host_bytes(runner, placement) if placement and not placement.tensors.fit else 0


def _host_bytes(runner: Runner, placement: Placement) -> int:
    path = runner.option("--model")
    if path is None:
        return 0
    tensors = open_gguf(Path(path)).tensors
    return host_bytes(placement, {name: info.nbytes for name, info in tensors.items()})


def _notes(placement: Placement | None, context: int, kept: int, sizes: Mapping[str, Mapping[str, float]]) -> list[str]:
    notes = []
    if placement is None or placement.tensors.fit or not placement.tensors.tiers:
        notes.append("no expert is placed by hand: llama.cpp fits the model itself (--fit)")
    if placement is not None and context > placement.context:
        notes.append(
            f"the model runs with {context} tokens of context, and the placement was made for {placement.context}"
        )
    if kept and not any(not device.startswith("CPU") for device in sizes):
        notes.append("no GPU was found: everything is on the host, whatever the placement says")
    if host_model_mib(sizes) * MIB < 0.99 * kept:
        notes.append(
            f"only {host_model_mib(sizes) * MIB:,.0f} bytes of weights are on the host, and the placement keeps "
            f"{kept:,} there: it was not applied"
        )
    return notes
