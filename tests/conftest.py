from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_moe import write_deepseek2, write_qwen3moe


@pytest.fixture(scope="session")
def qwen3moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3moe(tmp_path_factory.mktemp("qwen3moe") / "model.gguf")


@pytest.fixture(scope="session")
def deepseek2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deepseek2(tmp_path_factory.mktemp("deepseek2") / "model.gguf")


@pytest.fixture(scope="session")
def llama_tools() -> Path:
    """The folder of llama.cpp's tools that `make native` built of the installed version's sources."""
    script = Path(__file__).parent / "native" / "llama_tools.sh"
    command = [script, sys.executable, version("llama-cpp-python"), "--no-build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def llama_libraries() -> Path:
    """The folder of llama.cpp's other code paths, and Vulkan where it could be had, for COLLAB_LLAMA_LIBRARIES."""
    script = Path(__file__).parent / "native" / "llama_variants.sh"
    command = [script, sys.executable, version("llama-cpp-python"), "--no-build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())
