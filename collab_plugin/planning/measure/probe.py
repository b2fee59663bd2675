"""Probe a model: KL divergence of one group of tensors quantized, and of experts pruned, within a time."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.compression.as_gguf import runnable
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError
from collab_plugin.planning.candidates import Frames
from collab_plugin.planning.measure.groups import Group, coarse, split
from collab_plugin.planning.measure.scratch_copy import Scratch
from collab_plugin.progress import Advance, OnProgress, silent, track, untold
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.probes import Probes, PruneProbe, TypeProbe

PROBE_TYPE = "IQ3_XXS"
"""Hard enough to be seen above rounding, mild enough that harm is still proportional to error: from
IQ3_XXS to IQ1_S the ratio moves by a factor below 2 (docs/quality.md §1)."""


@dataclass(frozen=True)
class ProbeRequest:
    """``seconds`` to spend on runs of ``windows``."""

    windows: Windows
    seconds: float
    threads: int


@dataclass(frozen=True)
class _Task:
    """Exactly one of the two is set."""

    group: Group | None = None
    pruning: tuple[int, int] | None = None


def probe(
    frames: Frames,
    counts: Sequence[tuple[int, int]],
    kernels: Kernels,
    engine: Engine,
    request: ProbeRequest,
    folder: Path,
    report: Advance,
    keep: Callable[[Probes], None],
    progress: OnProgress = silent,
) -> None:
    """Measure until time runs out or nothing is left; probes in the stats are not measured again.

    ``keep`` gets all probes there are at the end, also when that is an interruption or an error; it is
    not called when nothing new was measured.

    First every part of the model at three depths, then some prunings (``counts``: experts kept and
    used), then both by turns: the group with the largest KL divergence is split, the next pruning
    measured. ``folder`` gets a copy of the model and the original's logits for as long as it runs.
    Raises CollabError without stats, or with an imatrix of another tool.
    """
    if frames.source is None:
        raise CollabError("--probe needs --stats: it keeps what it measures there")
    if frames.source.stats.model_id is None:
        raise CollabError("--probe keeps what it measures in the stats, and cannot in an imatrix of another tool: "
                          "calibrate with collab-plugin first")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder, prefix=".collab-probe-") as name:
        prober = _Prober(frames, counts, kernels, engine, request, Path(name), report, progress)
        try:
            prober.run()
        finally:
            if prober.done:
                keep(prober.probes)


class _Prober:
    def __init__(
        self,
        frames: Frames,
        counts: Sequence[tuple[int, int]],
        kernels: Kernels,
        engine: Engine,
        request: ProbeRequest,
        folder: Path,
        report: Advance,
        progress: OnProgress,
    ) -> None:
        assert frames.source is not None
        self.frames, self.counts, self.kernels, self.engine = frames, counts, kernels, engine
        self.request, self.folder, self.report, self.progress = request, folder, report, progress
        self.start = time.monotonic()
        self.stats = frames.source.stats
        self.errors = ErrorTable(frames.checkpoint, {}, self.stats, kernels, request.threads, untold)
        self.reference = folder / "reference.npy"
        self.probes = Probes((), "", request.windows.ctx, 0, engine.version())
        self.done = 0

    def run(self) -> None:
        request = self.request
        original = runnable(self.engine, "reference", self.frames.checkpoint, request.threads, self.progress)
        with track(self.progress, "running the original", unit="tokens") as report:
            self.engine.reference(
                original, request.windows, out=self.reference, threads=request.threads, progress=report
            )
        scratch = Scratch(
            self.frames.checkpoint, self.stats, self.kernels, self.folder, self.request.threads, self.progress
        )
        same = self._evaluate(scratch.path)
        self.probes = self._earlier(same)
        begun = time.monotonic()
        for task in self._tasks():
            if self._known(task):
                continue
            spent = time.monotonic() - self.start
            each = (time.monotonic() - begun) / self.done if self.done else 0.0
            if spent + each > self.request.seconds:
                break
            if task.group is not None:
                found = self._group(scratch, task.group)
                self.probes = dataclasses.replace(self.probes, types=(*self.probes.types, found))
            elif task.pruning is not None:
                pruned = self._pruning(*task.pruning)
                self.probes = dataclasses.replace(self.probes, prunes=(*self.probes.prunes, pruned))
            self.done += 1
            self.report(min(time.monotonic() - self.start, self.request.seconds - 0.1), self.request.seconds)
        self.report(self.request.seconds, self.request.seconds)

    def _earlier(self, same: Evaluation) -> Probes:
        """The probes in the stats if they are of these windows, else none."""
        texts, ctx = self.request.windows.texts, self.request.windows.ctx
        digest = hashlib.sha256(b"".join(text.read_bytes() for text in texts)).hexdigest()
        fresh = Probes(tuple(t.name for t in texts), digest, ctx, same.tokens, self.engine.version())
        old = self.stats.probes
        if old is not None and dataclasses.replace(old, types=(), prunes=()) == fresh:
            return old
        return fresh

    def _evaluate(self, model: Path) -> Evaluation:
        return self.engine.evaluate(
            model, self.reference, self.request.windows, threads=self.request.threads, progress=untold
        )

    # -- what to measure next

    def _tasks(self) -> Iterator[_Task]:
        groups = coarse(self.frames.checkpoint)
        prunings = iter(self.counts)
        yield from (_Task(group=g) for g in groups)
        for pruning in list(self.counts)[:2]:
            yield _Task(pruning=pruning)
        while True:
            pruning_left = next(prunings, None)
            if pruning_left is not None:
                yield _Task(pruning=pruning_left)
            worst = self._worst(groups)
            if worst is not None:
                groups = [g for g in groups if g != worst]
                parts = split(worst, self.frames.checkpoint)
                groups += parts
                yield from (_Task(group=part) for part in parts)
            if worst is None and pruning_left is None:
                return

    def _worst(self, groups: Sequence[Group]) -> Group | None:
        """The group with the largest KL divergence among those that can be split."""
        kld = {frozenset(p.types): p.kld for p in self.probes.types}
        able = [g for g in groups if split(g, self.frames.checkpoint)]
        return max(able, key=lambda g: kld.get(frozenset(g.tensors), 0.0), default=None)

    def _known(self, task: _Task) -> bool:
        if task.group is not None:
            return any(set(p.types) == set(task.group.tensors) for p in self.probes.types)
        return any(
            (p.expert_count, p.experts_used) == task.pruning and p.rule == self.frames.rule for p in self.probes.prunes
        )

    # -- measuring

    def _group(self, scratch: Scratch, group: Group) -> TypeProbe:
        tensors = self.frames.checkpoint.tensors
        types = {name: self.frames.possible(tensors[name], PROBE_TYPE) for name in group.tensors}
        errors = self.errors.measure({name: (kind,) for name, kind in types.items()})
        with scratch.quantized(types) as path:
            result = self._evaluate(path)
        error = sum(errors[name][kind] for name, kind in types.items())
        return TypeProbe(types, error, result.mean_kld, result.mean_kld_stderr)

    def _pruning(self, count: int, used: int) -> PruneProbe:
        frames, out = self.frames, self.folder / "pruned.gguf"
        plan = frames.finish(frames.frame(count, used), {}, {})
        compress(frames.checkpoint, plan, None, out, kernels=None, threads=self.request.threads, report=untold)
        result = self._evaluate(out)
        return PruneProbe(frames.rule, count, used, result.mean_kld, result.mean_kld_stderr)
