"""Run a job in vLLM's own Python, which need not be ours: its pins fight with those of other engines."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import collab_plugin
import collab_vllm
from collab_plugin.errors import CollabError

PYTHON = "COLLAB_VLLM"
"""Environment variable: the Python of an environment with vLLM."""
# Our packages last, so that the environment's own versions of everything else win.
_START = (
    "import sys; sys.path += sys.argv.pop(1).split(':'); "
    "from collab_vllm.calibrate.vllm_child_main import main; sys.exit(main())"
)


def vllm_python() -> str:
    """The Python in ``COLLAB_VLLM``, else ours when vLLM is installed here; CollabError when neither is."""
    given = os.environ.get(PYTHON)
    if given:
        if not os.access(given, os.X_OK):
            raise CollabError(f"{PYTHON} is {given}, which is no program; give the Python of vLLM's environment")
        return given
    if importlib.util.find_spec("vllm") is None:
        raise CollabError(
            "vLLM is not installed here: pip install 'collab-plugin[vllm]', or give the Python of an environment "
            f"that has it in {PYTHON}"
        )
    return sys.executable


def run_job(job: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, NDArray[Any]]:
    """Carry out ``job`` and return its arrays. CollabError with the child's message, or when a signal ended it."""
    python = vllm_python()
    with tempfile.TemporaryDirectory(prefix="collab-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job))
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [python, "-c", _START, _paths(), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the child
                env=_environment(job),
            )
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    told = json.loads(line)
                    progress(told["done"], told["total"])
                code = child.wait()
            finally:
                _end(child)
        if code == 0:
            with np.load(folder / "result.npz", allow_pickle=False) as arrays:
                return dict(arrays)
        raise _failure(code, folder, job)


def _paths() -> str:
    """Folders that hold our packages: a checkout has two, an installation one."""
    parents = (Path(str(module.__file__)).parents[1] for module in (collab_plugin, collab_vllm))
    return ":".join(dict.fromkeys(map(str, parents)))


def _environment(job: dict[str, Any]) -> dict[str, str]:
    """vLLM in one process, with as many threads as asked for."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(job["threads"]),
        "VLLM_PLUGINS": "",  # the job registers what it needs
        "VLLM_NO_USAGE_STATS": "1",
    }


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child with all that it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _failure(code: int, folder: Path, job: dict[str, Any]) -> Exception:
    if code == 2 and (folder / "error.txt").exists():
        return CollabError((folder / "error.txt").read_text())
    log = (folder / "log").read_text(errors="replace")
    if code < 0:
        what = signal.Signals(-code).name
        hint = "; the machine ran out of memory" if what == "SIGKILL" else ""
        return CollabError(f"vLLM was ended by {what} while it tried to {job['do']} {job['model']}{hint}")
    return RuntimeError(f"the vLLM worker failed (exit code {code}):\n{log[-4000:]}")
