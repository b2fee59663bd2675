"""What a llama-server that Ollama started was really told, and where its memory went."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

_BUFFER = re.compile(r"^\S+:\s+(\S+)\s+(model|KV|compute|output|RS) buffer size =\s+([\d.]+) MiB")
_HOST = re.compile(r"^(CPU|.*_Host)")


@dataclass(frozen=True)
class Runner:
    """A running llama-server: its command line, and the LLAMA_ARG_* variables it was given."""

    pid: int
    command: tuple[str, ...]
    variables: Mapping[str, str]

    def option(self, name: str) -> str | None:
        """The value behind ``name`` on the command line."""
        return self.command[self.command.index(name) + 1] if name in self.command[:-1] else None


def runners_of(server: int) -> list[Runner]:
    """The llama-servers that process ``server`` started, oldest first."""
    try:
        started = psutil.Process(server).children()
    except psutil.NoSuchProcess:
        return []
    found = [runner for runner in map(_runner, started) if runner is not None]
    return sorted(found, key=lambda runner: runner.pid)


def _runner(process: psutil.Process) -> Runner | None:
    try:
        command, environment = tuple(process.cmdline()), process.environ()
    except psutil.Error:  # it has ended, or is another user's
        return None
    if "--model" not in command:
        return None
    variables = {name: value for name, value in environment.items() if name.startswith("LLAMA_ARG_")}
    return Runner(process.pid, command, variables)


def buffers(log: str, port: str) -> dict[str, dict[str, float]]:
    """MiB by device and purpose ("model", "KV", ...) that the runner on ``port`` reported in the server's log."""
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if "starting llama-server" in line and f"--port {port} " in line]
    sizes: dict[str, dict[str, float]] = {}
    for line in lines[starts[-1] + 1 :] if starts else ():
        if "starting llama-server" in line:
            break
        if found := _BUFFER.match(line):
            device = sizes.setdefault(found[1], {})
            device[found[2]] = device.get(found[2], 0.0) + float(found[3])
    return sizes


def host_model_mib(sizes: Mapping[str, Mapping[str, float]]) -> float:
    """MiB of weights in the processor's memory."""
    return sum(purposes.get("model", 0.0) for device, purposes in sizes.items() if _HOST.match(device))
