from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_vllm import ROOT, Vllm


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    """vLLM's environment, with this checkout's wheel beside it."""
    script = ROOT / "tests" / "native" / "vllm_env.sh"
    found = subprocess.run([script, sys.executable, "--no-build"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip())
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", site, ROOT], check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return Vllm(Path(found.stdout.strip()), site, tmp_path_factory.mktemp("vllm"))
