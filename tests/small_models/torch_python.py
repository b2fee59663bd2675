"""A Python with torch: this one, or that of vLLM's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"


def torch_python(*needed: str) -> str:
    """Path of a Python with torch and ``needed``; skips the test where there is none."""
    if all(find_spec(name) for name in ("torch", *needed)):
        return sys.executable
    script = ROOT / "tests" / "native" / "vllm_env.sh"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run([script, version, "--no-build"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no torch here, and {done.stderr.strip()}")
    return done.stdout.strip()


def compute(
    gguf: Path,
    tokens: Sequence[int],
    out: Path,
    folder: Path | None = None,
    scales: Mapping[str, float] | None = None,
) -> dict[str, NDArray[Any]]:
    """What reference_child.py writes of ``gguf``; ``folder``: compared with transformers there. RuntimeError with what
    went wrong there."""
    python = torch_python(*(["transformers"] if folder else []))
    child, log = _child(python)
    if child.poll() is not None:  # ended since the last call: begin anew
        _child.cache_clear()
        child, log = _child(python)
    job = {"gguf": str(gguf), "tokens": list(tokens), "folder": str(folder) if folder else None, "scales": scales or {}}
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(json.dumps(job | {"out": str(out)}) + "\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        _child.cache_clear()
        log.seek(0)
        raise RuntimeError(f"exit code {child.wait()}: {log.read()[-3000:]}")
    if error := json.loads(answer):
        raise RuntimeError(error)
    with np.load(out) as found:
        return dict(found)


@cache
def _child(python: str) -> tuple[subprocess.Popen[str], IO[str]]:
    """A process that computes one job after the other until this one ends, because importing PyTorch and transformers
    takes seconds; and what it says."""
    paths = [str(ROOT / folder) for folder in (".", "adapters", "conformance")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLLAB_LOAD_PLUGINS": ""}
    command = [python, str(ROOT / "tests" / "conformance" / "reference_child.py")]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it is written as long as the child lives
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment), log
