"""Runs of `compress` that are killed at random moments and begun again, until one ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression import journaled_work
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import untold


def killed_until_done(
    checkpoint: Checkpoint, plan: Plan, out: Path, whole: bytes, seed: int, seconds: float, most: int = 40
) -> int:
    """Begin a run in a child, kill -9 it within ``seconds``, and so on until one ends by itself; how many were killed.

    ``whole``: the bytes that ``out`` has whenever it is there.
    After ``most`` of them the last is left to end.
    """
    random = np.random.default_rng(seed)
    for killed in range(most + 1):
        child = os.fork()
        if not child:
            try:
                journaled_work.SYNC_SECONDS = float(random.choice([0.0, 0.02]))
                compress(checkpoint, plan, None, out, kernels=None, threads=2, report=untold)
                os._exit(0)
            finally:
                os._exit(1)
        if killed < most and not _ends_within(child, float(random.uniform(0, seconds))):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return killed
        assert not out.exists() or out.read_bytes() == whole  # killed after it got its name
    raise AssertionError("a run that nobody killed did not end")


def _ends_within(child: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.001)
    return False
