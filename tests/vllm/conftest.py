from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from real_vllm import HERE, MODELS, OTHER, ROOT, Vllm
from trained_plans import pruning_plan


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    """vLLM's environment, with this checkout's wheel and the example of a third party's beside it."""
    script = ROOT / "tests" / "native" / "vllm_env.sh"
    found = subprocess.run([script, sys.executable, "--no-build"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip())
    site = _site(tmp_path_factory)
    return Vllm(Path(found.stdout.strip()), site, tmp_path_factory.mktemp("vllm"))


def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two wheels, made by the first worker that comes."""
    base = tmp_path_factory.getbasetemp()
    site = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "vllm-site"
    with FileLock(f"{site}.lock"):
        if not (site / "complete").exists():
            _install(site)
            (site / "complete").touch()
    return site


def _install(site: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    wheels = [ROOT, ROOT / "tests" / "plugins" / "plugin_wheel"]
    subprocess.run(
        [*pip, "--target", site, *wheels], check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    )


@pytest.fixture(scope="session")
def shared_output(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines that shared_job.py printed, vLLM's own among them."""
    folder = tmp_path_factory.mktemp("shared")
    pruning_plan(MODELS / "tiny-qwen3moe", folder / "qwen.json", keep=24, used=3)
    pruning_plan(MODELS / "tiny-qwen3moe", folder / "varied.json", keep=24, used=3, spread=4)
    pruning_plan(MODELS / "tiny-deepseek-v3", folder / "deepseek.json", keep=24, used=3)
    done = vllm.run(HERE / "shared_job.py", folder, MODELS, OTHER)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
