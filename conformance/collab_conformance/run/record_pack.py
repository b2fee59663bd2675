"""Record a pack: of the reference, or of a target, which runs in a child process as in `verify`.

The child, `python -m collab_conformance.run.record_pack JOBFILE`, prints progress on the pipe that was stdout, as JSON
lines [done, total]; stderr is its log. It exits with 2 for what the user can mend, said in the file `error`
beside the job.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collab_conformance.pack.make_pack import make_pack
from collab_conformance.pack.pack_document import PackDocument, Prompt, Recorder
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.run.find_targets import choose, find_targets
from collab_conformance.run.target_process import last_words
from collab_plugin.engines.target import LoadOptions, NotOfferedError, TargetInfo
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import from_plain, to_plain
from collab_plugin.plugins.manager import pick, registry
from collab_plugin.progress import Advance, OnProgress, silent, track

_ERROR, _LOG = "error", "log"


@dataclass(frozen=True)
class RecordJob:
    """What the child records; ``out`` is a folder that does not exist."""

    target: str
    artifact: str
    prompts: tuple[Prompt, ...]
    out: str
    threads: int
    recorder: Recorder


def record_reference(
    artifact: Path, prompts: Sequence[Prompt], out: Path, progress: OnProgress = silent
) -> PackDocument:
    """Write the reference's pack; CollabError where there is no reference."""
    with track(progress, f"computing the reference of {artifact.name}", unit="tokens") as report:
        return make_pack(artifact, prompts, out, report=report).document


def record_target(
    name: str, artifact: Path, prompts: Sequence[Prompt], out: Path, threads: int, progress: OnProgress = silent
) -> PackDocument:
    """Write what the target ``name`` computes; CollabError when it is not here, gives no logits, or dies."""
    infos = choose(find_targets(), [name])
    if len(infos) > 1:
        raise CollabError(f"{name!r} names {len(infos)} targets; a pack is recorded by one: {infos[0].name}")
    if infos[0].absent is not None:
        raise CollabError(f"{infos[0].name} cannot be run here: {infos[0].absent}")
    recorder = _recorder(infos[0])
    job = RecordJob(infos[0].name, str(artifact.resolve()), tuple(prompts), str(out.resolve()), threads, recorder)
    with tempfile.TemporaryDirectory(prefix="collab-record-") as scratch:
        path = Path(scratch, "job.json")
        path.write_text(json.dumps(to_plain(job)))
        code = _run(infos[0], path, progress)
        if code:
            raise CollabError(_why(infos[0].name, code, path))
    return read_pack(out).document


def _why(name: str, code: int, job: Path) -> str:
    said, log = job.with_name(_ERROR), job.with_name(_LOG)
    if said.exists():
        return said.read_text()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    words = last_words(log.read_text(errors="replace")) if log.exists() else ""
    return f"{name} ended by {how} while recording{f': {words}' if words else ''}"


def _recorder(info: TargetInfo) -> Recorder:
    device = info.device.name if info.device else ""
    return Recorder("engine", f"{info.name} {info.build}".strip(), device, dict(info.versions))


def _run(info: TargetInfo, path: Path, progress: OnProgress) -> int:
    provider = pick(registry().targets, info.engine, "target")
    command = [
        *(provider.command(info.name) or [sys.executable]),
        "-m",
        "collab_conformance.run.record_pack",
        str(path),
    ]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1", **provider.environment(info.name)}
    with path.with_name(_LOG).open("wb") as log, track(progress, f"recording {info.name}", unit="tokens") as report:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                done, total = json.loads(line)
                report(done, total)
            return child.wait()
        finally:
            child.kill()
            child.wait()


def main() -> int:
    """The child."""
    path = Path(sys.argv[1])
    job = from_plain(RecordJob, json.loads(path.read_text()))
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print must not reach our pipe

    def report(done: float, total: float | None = None) -> None:
        print(json.dumps([done, total]), file=pipe, flush=True)

    try:
        _record(job, report)
    except (CollabError, NotOfferedError) as error:
        path.with_name(_ERROR).write_text(str(error))
        return 2
    return 0


def _record(job: RecordJob, report: Advance) -> None:
    target = pick(registry().targets, job.target.partition(":")[0], "target").open(job.target)
    ctx = max(len(prompt.tokens) + prompt.greedy_steps for prompt in job.prompts)
    with target.load(Path(job.artifact), LoadOptions(ctx=ctx, threads=job.threads)) as session:
        make_pack(Path(job.artifact), job.prompts, Path(job.out), session.logits, recorder=job.recorder, report=report)


if __name__ == "__main__":
    sys.exit(main())
