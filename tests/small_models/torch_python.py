"""A Python with torch: this one, or that of vLLM's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


def run_python(python: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``python`` with this checkout's packages."""
    paths = [str(ROOT / folder) for folder in (".", "adapters", "conformance")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLLAB_LOAD_PLUGINS": ""}
    return subprocess.run([python, *arguments], capture_output=True, text=True, check=False, env=environment)


def compute(
    gguf: Path,
    tokens: Sequence[int],
    out: Path,
    folder: Path | None = None,
    scales: Mapping[str, float] | None = None,
) -> dict[str, NDArray[Any]]:
    """What reference_child.py writes of ``gguf``; ``folder``: compared with transformers there."""
    python = torch_python(*(["transformers"] if folder else []))
    job = {"gguf": str(gguf), "tokens": list(tokens), "folder": str(folder) if folder else None, "scales": scales or {}}
    out.with_suffix(".json").write_text(json.dumps(job))
    done = run_python(python, ROOT / "tests" / "conformance" / "reference_child.py", out.with_suffix(".json"), out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return dict(found)
