"""The child process: `python -m collab_llamacpp.calibrate.llamacpp_child_main FOLDER`."""

from __future__ import annotations

from collab_llamacpp.calibrate.disturb import disturb
from collab_llamacpp.calibrate.job_types import (
    CalibrateJob,
    DisturbJob,
    EvaluateJob,
    GenerateJob,
    MeasureJob,
    ReferenceJob,
    SampleJob,
)
from collab_llamacpp.calibrate.jobs import calibrate, evaluate, generate, reference
from collab_llamacpp.calibrate.measure import measure
from collab_llamacpp.calibrate.sample import sample
from collab_plugin.engines.child_main import run_child

if __name__ == "__main__":
    works = {
        CalibrateJob: lambda job, parent: calibrate(job, parent.progress),
        ReferenceJob: lambda job, parent: reference(job, parent.progress),
        EvaluateJob: lambda job, parent: evaluate(job, parent.progress),
        DisturbJob: lambda job, parent: disturb(job, parent.progress),
        SampleJob: lambda job, parent: sample(job, parent.progress),
        MeasureJob: lambda job, parent: measure(job),
        GenerateJob: lambda job, parent: generate(job, lambda text: parent.say(text=text)),
    }
    run_child(works)
