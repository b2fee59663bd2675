"""Run a job in vLLM's own Python, which need not be ours: its pins fight with those of other engines."""

from __future__ import annotations

import os

from collab_plugin.engines.child_process import Arrays, ChildProgram, OnLine, run
from collab_vllm.jobs.vllm_job_types import Job
from collab_vllm.our_packages import python_path
from collab_vllm.vllm_python import vllm_python


def run_job(job: Job, task: str, on_line: OnLine) -> Arrays:
    """Carry out ``job`` and return its arrays; ``on_line`` gets each line that the child tells.

    ``task`` completes "while it tried to". CollabError with the child's message, or when a signal ended it.
    """
    python = vllm_python()
    program = ChildProgram("collab_vllm.jobs.vllm_child_main", "vLLM", (python,), _environment(python, job.threads))
    return run(program, job, on_line).result(f"{task} {job.model}")


def _environment(python: str, threads: int) -> dict[str, str]:
    """vLLM in one process, with as many threads as asked for."""
    return {
        **python_path(python),
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_PLUGINS": "",  # the job registers what it needs
        "VLLM_NO_USAGE_STATS": "1",
    }
