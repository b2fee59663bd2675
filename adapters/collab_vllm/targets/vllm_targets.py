"""Which devices vLLM has here, or in the environment that vllm_python.py finds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from collab_plugin import (
    CollabError,
    Device,
    KernelBench,
    LoadOptions,
    NotOfferedError,
    Session,
    Target,
    TargetInfo,
    TargetProvider,
)
from collab_vllm.our_packages import python_path
from collab_vllm.vllm_python import vllm_python

ENGINE = "vllm"
_ASK = """
import json
from importlib.metadata import version
import torch
found = {"vllm": version("vllm"), "torch": torch.__version__, "driver": "", "devices": []}
driver = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
if "cpu" not in found["vllm"]:
    for backend in ("cuda", "xpu", "mps"):
        module = getattr(torch, backend, None)
        for i in range(module.device_count() if module and module.is_available() else 0):
            properties = module.get_device_properties(i) if backend != "mps" else None
            found["devices"].append({
                "kind": "rocm" if backend == "cuda" and torch.version.hip else backend,
                "name": getattr(properties, "name", "Apple"),
                "memory": getattr(properties, "total_memory", None),
                "unified": bool(getattr(properties, "is_integrated", backend == "mps")),
                "driver": driver if backend == "cuda" else "",
            })
print(json.dumps(found))
"""
"""Run by vLLM's Python: importing torch may abort, and takes a while."""


class VllmTargets(TargetProvider):
    """Targets "vllm:cpu", "vllm:cuda:0", "vllm:rocm:0", "vllm:xpu:0"."""

    name = ENGINE

    def find(self) -> Sequence[TargetInfo]:
        if isinstance(self._facts, str):
            return [TargetInfo(f"{ENGINE}:cpu", ENGINE, "", None, absent=self._facts)]
        found = self._facts
        versions = {"torch": found["torch"]}
        build = f"vllm {found['vllm']}"
        if "cpu" in found["vllm"]:
            return [TargetInfo(f"{ENGINE}:cpu", ENGINE, build, _processor(), versions=versions)]
        if not found["devices"]:
            return [TargetInfo(f"{ENGINE}:cuda:0", ENGINE, build, None, "PyTorch sees no device that vLLM runs on")]
        return [
            TargetInfo(f"{ENGINE}:{d['kind']}:{i}", ENGINE, build, _device(d), versions=versions)
            for i, d in enumerate(found["devices"])
        ]

    def open(self, name: str) -> Target:
        kind, _, number = name.removeprefix(f"{ENGINE}:").partition(":")
        return VllmTarget("cuda" if kind == "rocm" else kind, number)

    def command(self, name: str) -> Sequence[str]:
        return (vllm_python(),)

    def environment(self, name: str) -> Mapping[str, str]:
        number = name.removeprefix(f"{ENGINE}:").partition(":")[2]
        return {
            **python_path(vllm_python()),
            "COLLAB_LOAD_PLUGINS": ENGINE,  # others may lack what they need in vLLM's environment
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", number),
        }

    @cached_property
    def _facts(self) -> dict[str, Any] | str:
        """What vLLM's Python says, or why there is none."""
        try:
            python = vllm_python()
        except CollabError as error:
            return str(error)
        try:
            done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"vLLM's Python {python} does not answer ({error.__class__.__name__})"
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return f"vLLM's Python {python} cannot load it: {last[:200]}"
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts


class VllmTarget(Target):
    """Imports vLLM on first use."""

    places = True

    def __init__(self, kind: str, number: str) -> None:
        self._kind, self._number = kind, number

    def load(self, artifact: Path, options: LoadOptions) -> AbstractContextManager[Session]:
        from collab_vllm.targets.vllm_session import load

        return load(artifact, options)

    @contextmanager
    def kernels(self) -> Iterator[KernelBench]:
        try:
            from collab_vllm.targets.vllm_bench import VllmBench
        except ImportError as error:
            raise NotOfferedError(f"PyTorch cannot be loaded: {error}") from None
        yield VllmBench(self._kind)


def _processor() -> Device:
    return Device(_processor_name(), "cpu", "", _memory(), None)


def _processor_name() -> str:
    import platform

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int:
    import psutil  # not at the top: vLLM's own Python imports this module, too

    return int(psutil.virtual_memory().total)


def _device(found: Mapping[str, Any]) -> Device:
    return Device(
        found["name"], "igpu" if found["unified"] else "gpu", found["driver"], found["memory"], found["unified"]
    )
