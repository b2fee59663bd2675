"""The devices that Ollama found, from its log.

Source: discover/types.go (LogDetails) of Ollama v0.32.15: one line a device in order of scheduling preference, or
one for the CPU.
"""

from __future__ import annotations

import re

from collab_plugin.engines.target import Device

_MARK = 'msg="inference compute"'
# Go's slog quotes a value when it must: name=cpu, description="AMD Radeon Graphics".
_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_PORT = re.compile(r"starting llama-server.*? --port (\d+) ")


def devices_of(log: str) -> list[Device]:
    """Devices in the log, the preferred one first; empty while Ollama is still looking."""
    return [_device(line) for line in log.splitlines() if _MARK in line]


def runner_port(log: str) -> int | None:
    """Port of the llama-server that was started last."""
    found = _PORT.findall(log)
    return int(found[-1]) if found else None


def _device(line: str) -> Device:
    """Memory is what the log says, to a tenth of a GiB. Apple's and integrated GPUs have the CPU's memory."""
    said = {name: value.strip('"') for name, value in _PAIR.findall(line)}
    library, kind = said.get("library", ""), said.get("type", "")
    name = said.get("description") or said.get("name") or library
    memory = _bytes(said.get("total", ""))
    if library == "cpu":
        return Device("CPU", "cpu", "", memory, None)
    unified = kind == "iGPU" or library.lower() == "metal"
    driver = " ".join(part for part in (library, said.get("driver", "")) if part)
    return Device(name, "igpu" if unified else "gpu", driver, memory, unified)


def _bytes(text: str) -> int | None:
    number, _, unit = text.partition(" ")
    try:
        return round(float(number) * _UNITS[unit])
    except (ValueError, KeyError):
        return None
