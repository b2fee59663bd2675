"""The child process, in vLLM's environment: `python -m collab_vllm.jobs.vllm_child_main FOLDER`."""

from __future__ import annotations

from collab_plugin.engines.child_main import run_child
from collab_vllm.jobs.calibrate import calibrate
from collab_vllm.jobs.compare import evaluate, reference
from collab_vllm.jobs.generate import generate
from collab_vllm.jobs.vllm_job_types import VllmCalibrateJob, VllmEvaluateJob, VllmGenerateJob, VllmReferenceJob

if __name__ == "__main__":
    works = {
        VllmCalibrateJob: lambda job, parent: calibrate(job, parent.progress),
        VllmReferenceJob: lambda job, parent: reference(job, parent.progress),
        VllmEvaluateJob: lambda job, parent: evaluate(job, parent.progress),
        VllmGenerateJob: lambda job, parent: generate(job, lambda text: parent.say(text=text)),
    }
    run_child(works)
