"""A child that does one odd thing, for test_child_process.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.child_main import Parent, run_child
from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class Odd:
    """``way``: what it does; ``number``: what goes with that."""

    way: str
    number: int = 0


def work(job: Odd, parent: Parent) -> Mapping[str, NDArray[Any]] | None:
    if job.way == "count":
        for i in range(job.number):
            parent.progress(i + 1, job.number)
        return {"squares": np.arange(job.number) ** 2}
    if job.way == "echo":
        for _ in range(job.number):
            parent.say(heard=parent.hear()["word"])
    elif job.way == "print":
        print("not for the parent")
        os.system("echo nor this")
        parent.say(stdin=sys.stdin.read())
    elif job.way == "mistake":
        raise CollabError("the odd child cannot do that: mend ä")
    elif job.way == "bug":
        raise KeyError("a bug")
    elif job.way == "abort":
        print("GGML_ASSERT(false) failed\nerror: later", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    elif job.way == "signal":
        os.kill(os.getpid(), job.number)
    elif job.way == "exit":
        print("said at last", file=sys.stderr, flush=True)
        os._exit(job.number)
    elif job.way == "half line":
        os.write(parent._pipe.fileno(), b'{"done": 1')
        os._exit(0)
    elif job.way == "family":
        grandchild = subprocess.Popen(["sleep", "600"])
        parent.say(pids=[os.getpid(), grandchild.pid])
        time.sleep(600)
    elif job.way == "holds pipe":
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return None


if __name__ == "__main__":
    run_child({Odd: work})
