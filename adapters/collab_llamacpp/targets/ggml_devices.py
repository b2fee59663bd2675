"""Devices of a llama.cpp build, listed by a child process."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from collab_llamacpp.targets.builds import Build
from collab_plugin import CollabError, Device

Kind = Literal["cpu", "gpu", "igpu", "accelerator"]

# ggml's log of a Vulkan device: its number, driver, and whether memory is shared with the CPU.
_VULKAN = re.compile(r"^ggml_vulkan: (\d+) = .* \(([^()]*)\) \| uma: (\d)", re.MULTILINE)
_NOT_LOADED = re.compile(r"failed to load [^\n]*?: ([^\n]+)")
_METAL_UNIFIED = re.compile(r"has unified memory\s*=\s*(true|false)")
# Vulkan drivers that run on the CPU.
_SOFTWARE = re.compile(r"llvmpipe|lavapipe|swiftshader|softpipe", re.IGNORECASE)
_NAMES = {"MTL": "metal"}
_SECONDS = 60


@dataclass(frozen=True)
class Listed:
    """A device: its ``kind`` of backend as in target names ("vulkan"), its number there, its features."""

    kind: str
    index: int
    device: Device
    features: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What a child printed: ``kinds`` of backends, also those without a device; ``refused``: why the backend
    did not load, "" when it did."""

    version: str
    kinds: tuple[str, ...]
    devices: tuple[Listed, ...]
    refused: str


def kind_of(backend: str) -> str:
    """A backend's part of target names: "vulkan" of "Vulkan", "metal" of "MTL"."""
    return _NAMES.get(backend, backend.lower())


def list_devices(build: Build, backend: Path | None = None) -> Listing:
    """Ask a child; CollabError with the reason when it ends without an answer."""
    done = _run(build, backend)
    if done.returncode:
        raise CollabError(_failure(done, backend or build.folder))
    answer = json.loads(done.stdout)
    counts: dict[str, int] = {}
    devices = []
    for told in answer["devices"]:
        kind = kind_of(told["backend"])
        index = counts[kind] = counts.get(kind, -1) + 1
        devices.append(Listed(kind, index, _device(told, kind, index, done.stderr), tuple(told["features"])))
    commit = f" ({answer['commit']})" if answer["commit"] != "unknown" else ""
    kinds = tuple(kind_of(name) for name in answer["backends"])
    return Listing(answer["version"] + commit, kinds, tuple(devices), "" if answer["loaded"] else _refusal(done.stderr))


def _run(build: Build, backend: Path | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "collab_llamacpp.targets.listing", str(build.folder)]
    try:
        return subprocess.run(
            [*command, str(backend)] if backend else command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GGML_NO_BACKTRACE": "1", **build.environment()},
        )
    except subprocess.TimeoutExpired:
        raise CollabError(f"{backend or build.folder} listed no devices within {_SECONDS} seconds") from None


def _failure(done: subprocess.CompletedProcess[str], what: Path) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = (lines[-1] if lines else "no message").removeprefix("collab_plugin.errors.CollabError: ")
    if done.returncode < 0:
        return f"{what} was ended by {signal.Signals(-done.returncode).name} while it listed its devices: {last}"
    return last


def _refusal(log: str) -> str:
    """What ggml says of a backend that it does not load: the dynamic linker's message, or its own line."""
    found = _NOT_LOADED.search(log)
    return found[1].strip() if found else "it refuses this machine"


def _device(told: dict[str, object], kind: str, index: int, log: str) -> Device:
    name = str(told["description"] or told["name"])
    driver, unified = _driver(kind, index, log)
    software = kind == "vulkan" and bool(_SOFTWARE.search(f"{name} {driver}"))
    hardware: Kind = told["type"] if told["type"] in ("cpu", "gpu", "igpu") else "accelerator"
    # BLAS computes on the CPU; ggml calls it an accelerator.
    if software or kind == "blas":
        hardware = "cpu"
    if hardware in ("cpu", "igpu"):
        unified = True
    return Device(
        name, hardware, f"{driver}, software" if software else driver, int(str(told["memory"])) or None, unified
    )


def _driver(kind: str, index: int, log: str) -> tuple[str, bool | None]:
    """A driver's name or version where it is told, and whether memory is unified."""
    if kind == "vulkan":
        for match in _VULKAN.finditer(log):
            if int(match[1]) == index:
                return match[2], match[3] == "1"
    if kind == "metal":
        told = _METAL_UNIFIED.search(log)
        return f"macOS {platform.mac_ver()[0]}", told[1] == "true" if told else None
    modules = {"cuda": "/proc/driver/nvidia/version", "rocm": "/sys/module/amdgpu/version"}
    path = Path(modules.get(kind, ""))
    if kind in modules and path.is_file():
        return path.read_text("utf-8").splitlines()[0].strip(), None
    return "", None
