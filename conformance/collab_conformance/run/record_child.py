"""The child process that records a target's pack: `python -m collab_conformance.run.record_child FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collab_conformance.pack.make_pack import make_pack
from collab_conformance.pack.pack_document import Prompt, Recorder
from collab_plugin.engines.child_main import Parent, run_child
from collab_plugin.engines.target import LoadOptions
from collab_plugin.plugins.manager import pick, registry


@dataclass(frozen=True)
class RecordJob:
    """What is recorded; ``out`` is a folder that does not exist."""

    target: str
    artifact: str
    prompts: tuple[Prompt, ...]
    out: str
    threads: int
    recorder: Recorder


def main() -> None:
    run_child({RecordJob: _record})


def _record(job: RecordJob, parent: Parent) -> None:
    target = pick(registry().targets, job.target.partition(":")[0], "target").open(job.target)
    ctx = max(len(prompt.tokens) + prompt.greedy_steps for prompt in job.prompts)
    artifact, out = Path(job.artifact), Path(job.out)
    with target.load(artifact, LoadOptions(ctx=ctx, threads=job.threads)) as session:
        make_pack(artifact, job.prompts, out, session.logits, recorder=job.recorder, report=parent.progress)


if __name__ == "__main__":
    main()
