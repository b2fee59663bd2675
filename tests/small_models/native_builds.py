"""Where `make native` put its builds."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def native_build(script: str) -> subprocess.CompletedProcess[str]:
    """What ``script`` of tests/native prints: where its build is (exit code 0), or why there is none."""
    try:
        versions = [] if script == "vllm_env.sh" else [version("llama-cpp-python")]
    except PackageNotFoundError:
        return subprocess.CompletedProcess([script], 2, "", "llama-cpp-python is not installed: run make native")
    command = [Path(__file__).parents[1] / "native" / script, sys.executable, *versions, "--no-build"]
    return subprocess.run(command, capture_output=True, text=True, check=False)
