from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small_models.native_builds import native_build
from small_models.tiny_moe import write_deepseek2, write_qwen3moe

# What the marker `native` is given to: whole folders, and tests that ask for one of these fixtures.
NATIVE_FOLDERS = ("behaviour/", "llamacpp/", "native/", "vllm/")
NATIVE_FIXTURES = {"kernels", "bench", "runnable", "made", "ollama", "parse", "llama_tools", "llama_libraries"}
# Folders with files that take long: first, so that no worker is left alone with one at the end.
LONGEST = (
    *("behaviour/", "vllm/", "repository/", "lm_eval/", "conformance/", "ollama/", "planning/", "checkpoint/"),
    *("llamacpp/", "compression/", "plugins/", "cli/", "reports/"),
)
# Files that quantize to ggml's smallest types: it makes their tables once a process, in 15 seconds.
SMALLEST_TYPES = (
    "tests/behaviour/test_behaviour_unchanged.py",
    "tests/compression/test_same_as_llamacpp.py",
    "tests/conformance/test_packs_of_the_suite.py",
    "tests/llamacpp/test_targets_bench.py",
    "tests/planning/test_corners.py",
    "tests/quantize/test_kernels.py",
    "tests/repository/test_readme.py",
)
pytest_plugins = ["small_models.benches"]


def pytest_configure() -> None:
    _name_native_builds()
    _take_a_core()


def _name_native_builds() -> None:
    """Say where the programs are that `make native` built, as a user would; what the user named stays. The user's
    settings file is out of the way."""
    os.environ["XDG_CONFIG_HOME"] = str(Path(__file__).parent / "no-settings")
    for variable, script, program in (
        ("COLLAB_LLAMA_LIBRARIES", "llama_variants.sh", ""),
        ("COLLAB_OLLAMA", "ollama.sh", "bin/ollama"),
        ("COLLAB_VLLM", "vllm_env.sh", ""),
    ):
        found = native_build(script)
        if found.returncode == 0:
            os.environ.setdefault(variable, str(Path(found.stdout.strip()) / program))


def _take_a_core() -> None:
    """A core for each of xdist's workers: ggml's threads spin, and two times two of them on two cores are
    up to five times slower (measured on 2026-11-24)."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without llama-cpp-python, files that are of no use are not even read: they may import it."""
    name = collection_path.relative_to(Path(__file__).parent).as_posix() + "/"
    return True if find_spec("llama_cpp") is None and name.startswith(NATIVE_FOLDERS) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(root).as_posix()
        return next((i for i, part in enumerate(LONGEST) if name.startswith(part)), len(LONGEST))

    items.sort(key=place)
    for item in items:
        folder = item.path.relative_to(root).as_posix().startswith(NATIVE_FOLDERS)
        if folder or NATIVE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.native)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share what they made stay on one worker. (`--dist loadgroup` of pytest-xdist 3.8 does nothing with
    pytest 9.2, where node ids cannot be changed.)"""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared_scope(nodeid)

    return ByWhatIsShared(config, log)


def shared_scope(nodeid: str) -> str:
    """A file, the two files that read what one process of vLLM printed, those that need the same tables, or one trained
    model."""
    path, _, test = nodeid.partition("::")
    if path in SMALLEST_TYPES:
        return "smallest types"
    if path.removeprefix("tests/vllm/") in ("test_vllm_families.py", "test_vllm_mistakes.py"):
        return "tests/vllm"
    return path + test[test.find("[") :] if path.endswith("test_models.py") else path


@pytest.fixture(scope="session")
def qwen3moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3moe(tmp_path_factory.mktemp("qwen3moe") / "model.gguf")


@pytest.fixture(scope="session")
def deepseek2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deepseek2(tmp_path_factory.mktemp("deepseek2") / "model.gguf")


@pytest.fixture(scope="session")
def llama_tools() -> Path:
    """The folder of llama.cpp's tools that `make native` built of the installed version's sources."""
    done = native_build("llama_tools.sh")
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def llama_converter() -> Path | None:
    """The folder of llama.cpp's own converter, None where `make native` has not fetched it."""
    done = native_build("llama_converter.sh")
    return None if done.returncode else Path(done.stdout.strip())


@pytest.fixture(scope="session")
def llama_libraries() -> Path:
    """The folder of llama.cpp's other code paths, and Vulkan where it could be had, for COLLAB_LLAMA_LIBRARIES."""
    done = native_build("llama_variants.sh")
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())
