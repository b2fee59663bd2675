"""Run a job in a child process, so that an abort of native code is an error here and no crash."""

from __future__ import annotations

from collab_llamacpp.calibrate.job_types import Job
from collab_plugin.engines.child_process import Arrays, ChildProgram, OnLine, run


def llamacpp_program(module: str) -> ChildProgram:
    """``module`` as a child process that loads llama.cpp."""
    # Else ggml runs gdb on an abort, which takes seconds.
    return ChildProgram(module, "llama.cpp", environment={"GGML_NO_BACKTRACE": "1"})


def run_job(job: Job, task: str, on_line: OnLine) -> Arrays:
    """Carry out ``job`` and return its arrays; ``on_line`` gets each line that the child tells.

    ``task`` completes "while it tried to". CollabError with the child's message, or naming the signal that ended it
    and llama.cpp's complaint.
    """
    return run(llamacpp_program("collab_llamacpp.calibrate.llamacpp_child_main"), job, on_line).result(task)
