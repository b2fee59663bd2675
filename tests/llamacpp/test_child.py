"""Native code that aborts, is killed or refuses is one error here; this process lives on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from collab_llamacpp.calibrate.job_types import CalibrateJob
from collab_llamacpp.calibrate.llamacpp_child import run_job
from engine_calls import CTX

from collab_plugin.engines.text_windows import TextCut
from collab_plugin.errors import CollabError


def _job(model: Path, text: Path) -> CalibrateJob:
    return CalibrateJob(str(model), 1, TextCut((str(text),), CTX), 4, "qwen3moe")


def _children() -> list[int]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in task.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_child(how: signal.Signals, qwen3moe: Path, prose: Path) -> None:
    before = set(_children())

    def kill(line: dict[str, Any]) -> None:
        for pid in set(_children()) - before:
            os.kill(pid, how)

    with pytest.raises(CollabError, match=f"ended by {how.name} while it tried to calibrate") as error:
        run_job(_job(qwen3moe, prose), "calibrate it", kill)
    assert "\n" not in str(error.value)
    assert ("memory" in str(error.value)) == (how == signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
def test_no_child_outlives_an_interruption(qwen3moe: Path, prose: Path) -> None:
    before = set(_children())
    started: list[int] = []

    def interrupt(line: dict[str, Any]) -> None:
        started.extend(set(_children()) - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(_job(qwen3moe, prose), "calibrate it", interrupt)
    assert started
    time.sleep(0.05)
    assert not set(_children()) - before
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_a_bug_in_the_child_is_shown_whole(qwen3moe: Path, prose: Path) -> None:
    job = replace(_job(qwen3moe, prose), kv_type="f99")
    with pytest.raises(RuntimeError, match="KeyError: 'F99'"):
        run_job(job, "calibrate it", lambda line: None)
