"""A calibration in vLLM that was stopped goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from collab_vllm.jobs.calibrate import BATCH
from kept_calibration import CTX, WINDOWS, calibrate
from real_vllm import HERE, MODELS, ROOT, TRAINED, Vllm

import collab_plugin as cp
from collab_plugin.progress import Progress

pytestmark = pytest.mark.slow

TEXT = ROOT / "tests" / "texts" / "english.calibration.txt"
TOKENS = BATCH * CTX
"""Of a batch."""


def _kill_parent(model: Path, kept: Path, after: int) -> None:
    """A calibration whose parent process is killed when it tells of more than ``after`` tokens."""
    command = [sys.executable, HERE / "kept_calibration.py", model, TEXT, kept]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if int(line) > after:
                break
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        parent.kill()
        assert not psutil.wait_procs(children, 30)[1]


def _kill_child(model: Path, kept: Path, after: int) -> float:
    """A calibration whose child process is killed when it tells of more than ``after`` tokens; of how many it told
    first."""
    told: list[float] = []

    def kill(line: dict[str, Any]) -> None:
        told.append(line["done"])
        if line["done"] > after:
            for child in psutil.Process().children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(cp.CollabError, match="vLLM was ended by SIGKILL while it tried to calibrate"):
        calibrate(model, TEXT, kept, kill)
    return told[0]


@pytest.mark.parametrize("name", TRAINED)
def test_it_goes_on_to_the_same_bytes(name: str, vllm: Vllm, tmp_path: Path) -> None:
    model, out, whole = MODELS / name, tmp_path / "stats.gguf", tmp_path / "whole.gguf"
    kept, told = tmp_path / "stats.gguf.unfinished", list[Progress]()

    def run(out: Path) -> None:
        cp.calibrate(
            model, texts=TEXT, ctx=CTX, chunks=WINDOWS, out=out, engine="vllm", threads=1, progress=told.append
        )

    _kill_parent(model, kept, TOKENS)
    assert _kill_child(model, kept, 3 * TOKENS) >= TOKENS
    run(out)
    first = next(event.earlier for event in told if event.taken_up)
    assert first >= 3 * TOKENS, "what was kept"
    run(whole)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stats.gguf", "whole.gguf"]


def test_what_is_not_its_own_does_not_count(vllm: Vllm, tmp_path: Path) -> None:
    model, copy = MODELS / TRAINED[0], tmp_path / "copy"
    shutil.copytree(model, copy, copy_function=shutil.copy)
    done = vllm.run(HERE / "keys_job.py", model, copy, TEXT)
    assert done.returncode == 0, done.stderr[-3000:]
    keys = json.loads(done.stdout.splitlines()[-1])
    assert keys.pop("plain") == keys["again"]
    assert len(set(keys.values())) == len(keys)
