"""Record a pack: of the reference, or of a target, which runs in a child process as in `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from collab_conformance.pack.make_pack import make_pack
from collab_conformance.pack.pack_document import PackDocument, Prompt, Recorder
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.run.find_targets import choose, find_targets
from collab_conformance.run.record_child import RecordJob
from collab_conformance.run.target_program import target_program
from collab_plugin.engines.child_process import heard, run
from collab_plugin.engines.target import TargetInfo
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import pick, registry
from collab_plugin.progress import OnProgress, silent, track


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
    provider = pick(registry().targets, infos[0].engine, "target")
    program = target_program("collab_conformance.run.record_child", provider, infos[0].name)
    with track(progress, f"recording {infos[0].name}", unit="tokens") as report:
        run(program, job, heard(report)).result(f"record {artifact.name}")
    return read_pack(out).document


def _recorder(info: TargetInfo) -> Recorder:
    device = info.device.name if info.device else ""
    return Recorder("engine", f"{info.name} {info.build}".strip(), device, dict(info.versions))
