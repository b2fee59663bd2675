from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_moe import write_deepseek2, write_qwen3moe

# Files that take long: first, so that no worker is left alone with one at the end.
LONGEST = ("vllm/", "test_readme.py", "test_models.py", "conformance/", "ollama/", "tasks/", "compress/")


def pytest_configure() -> None:
    """A core for each of xdist's workers: ggml's threads spin, and two times two of them on two cores are
    up to five times slower (measured on 2026-11-24)."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(wrapper=True)  # before xdist reads the groups, which a conftest's own turn would be after
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """For `--dist loadgroup`: a file's tests stay together, for they share what they made; vLLM's also share
    processes across files."""
    root = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(root).as_posix()
        return next((i for i, part in enumerate(LONGEST) if name.startswith(part)), len(LONGEST))

    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            folder = item.path.parent
            item.add_marker(pytest.mark.xdist_group("vllm" if folder.name == "vllm" else item.path.as_posix()))
    items.sort(key=place)
    yield


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
