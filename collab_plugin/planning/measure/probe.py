"""Probe a model: KL divergence of one group of tensors quantized, and of experts pruned, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from collab_plugin.checkpoint.identity import model_id
from collab_plugin.compression.as_gguf import runnable
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.measure.groups import Group
from collab_plugin.planning.measure.measuring import Measuring, check_measuring
from collab_plugin.planning.measure.probe_order import Task, tasks
from collab_plugin.planning.measure.scratch_copy import Scratch
from collab_plugin.planning.measure.scratch_folder import scratch_folder
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.search_space import prunings
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.planning.type_choices import possible
from collab_plugin.progress import Advance, OnProgress, silent, track, untold
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.stats.sensitivity import PruningProbe, Sensitivity, TypeProbe
from collab_plugin.stats.text_hash import texts_sha256

PROBE_TYPE = "IQ3_XXS"
"""Hard enough to be seen above rounding, mild enough that harm is still proportional to error: from
IQ3_XXS to IQ1_S the ratio moves by a factor below 2 (docs/quality.md §1)."""


def probe(
    planning: PlanningInput,
    measuring: Measuring,
    seconds: float,
    keep: Callable[[Sensitivity], None] = lambda found: None,
    progress: OnProgress = silent,
) -> Sensitivity:
    """Measure until ``seconds`` have passed or nothing is left, and return all probes there are.

    What the sensitivity document of ``planning`` holds is not measured again. ``keep`` gets all probes when the
    work ends, also by an interruption or an error; it is not called when nothing new was measured.

    First every part of the model at three depths, then some prunings, those that the request leaves open, then both
    by turns: the group with the largest KL divergence is split, the next pruning measured. The user's cache folder
    gets a copy of the model and the original's logits for as long as this runs.

    Raises CollabError without stats, and where the document at hand is of other stats, another text, windows or engine.
    """
    if planning.stats_source is None:
        raise CollabError("probing needs statistics to quantize and prune by: give `stats`")
    check_measuring(planning, measuring)
    known = _begun(planning, planning.stats_source, measuring)
    candidates = Candidates(planning)
    counts = prunings(candidates)
    start = time.monotonic()
    original = runnable(measuring.engine, "reference", planning.checkpoint, planning.request.threads, progress)
    with scratch_folder() as folder:
        prober = _Prober(candidates, measuring, known, folder, original, progress)
        with track(progress, "probing", unit="s") as report:
            try:
                prober.run(counts, start, seconds, report)
            finally:
                if prober.done:
                    keep(prober.found)
    return prober.found


def _begun(planning: PlanningInput, stats: StatsSource, measuring: Measuring) -> Sensitivity:
    """The document at hand, or one without probes; CollabError when the one at hand was measured otherwise."""
    windows = measuring.windows
    fresh = Sensitivity(
        model_id=model_id(planning.checkpoint),
        stats_sha256=stats.sha256,
        texts=tuple(text.name for text in windows.texts),
        text_sha256=texts_sha256(windows.texts),
        ctx=windows.ctx,
        chunks=windows.chunks,
        tokens=0,
        engine=measuring.engine.version(),
    )
    source = planning.sensitivity_source
    if source is None:
        return fresh
    _check_same(source, fresh)
    return source.sensitivity


def _check_same(source: SensitivitySource, fresh: Sensitivity) -> None:
    old = source.sensitivity
    for what, known, now in (
        ("with other stats", old.stats_sha256, fresh.stats_sha256),
        ("on another text", old.text_sha256, fresh.text_sha256),
        (f"in windows of {old.ctx} tokens", old.ctx, fresh.ctx),
        (f"on {old.chunks or 'all'} windows of each text", old.chunks, fresh.chunks),
        (f"by {old.engine}", old.engine, fresh.engine),
    ):
        if known != now:
            raise CollabError(f"{source.label} was probed {what}, and cannot go on here; name another file to write")


class _Prober:
    def __init__(
        self,
        candidates: Candidates,
        measuring: Measuring,
        known: Sensitivity,
        folder: Path,
        original: Path,
        progress: OnProgress,
    ) -> None:
        self.candidates, self.planning, self.measuring = candidates, candidates.planning, measuring
        self.folder, self.progress, self.found = folder, progress, known
        self.checkpoint, self.threads = self.planning.checkpoint, self.planning.request.threads
        kernels, imatrix = self.planning.needed_kernels(), self.planning.imatrix
        self.errors = ErrorTable(self.checkpoint, {}, imatrix, kernels, self.threads, untold)
        self.reference = folder / "reference.npy"
        with track(progress, "running the original", unit="tokens") as report:
            measuring.engine.reference(
                original, measuring.windows, out=self.reference, threads=self.threads, progress=report
            )
        self.scratch = Scratch(self.checkpoint, imatrix, kernels, folder, self.threads, progress)
        self.done = 0

    def run(self, counts: Sequence[tuple[int, int]], start: float, seconds: float, report: Advance) -> None:
        """Do one task after another; ``start`` and ``seconds`` on the monotonic clock."""
        self.found = replace(self.found, tokens=self._evaluate(self.scratch.path).tokens)
        begun = time.monotonic()
        for task in tasks(self.checkpoint, counts, lambda: self.found):
            if task.known(self.found, self.planning.rule):
                continue
            spent = time.monotonic() - start
            each = (time.monotonic() - begun) / self.done if self.done else 0.0
            if spent + each > seconds:
                break
            self._do(task)
            self.done += 1
            report(min(time.monotonic() - start, seconds - 0.1), seconds)
        report(seconds, seconds)

    def _do(self, task: Task) -> None:
        if isinstance(task.what, Group):
            self.found = replace(self.found, types=(*self.found.types, self._group(task.what)))
        else:
            self.found = replace(self.found, prunings=(*self.found.prunings, self._pruning(*task.what)))

    def _evaluate(self, model: Path) -> Evaluation:
        m = self.measuring
        return m.engine.evaluate(model, self.reference, m.windows, threads=self.threads, progress=untold)

    def _group(self, group: Group) -> TypeProbe:
        types = {n: possible(self.planning, self.checkpoint.tensors[n], PROBE_TYPE) for n in group.tensors}
        errors = self.errors.measure({name: (kind,) for name, kind in types.items()})
        with self.scratch.quantized(types) as path:
            result = self._evaluate(path)
        error = sum(errors[name][kind] for name, kind in types.items())
        return TypeProbe(types, error, result.mean_kld, result.mean_kld_stderr)

    def _pruning(self, count: int, used: int) -> PruningProbe:
        out = self.folder / "pruned.gguf"
        plan = self.candidates.finish(self.candidates.candidate(count, used), {}, {})
        compress(self.checkpoint, plan, None, out, kernels=None, threads=self.threads, report=untold)
        result = self._evaluate(out)
        return PruningProbe(self.planning.rule, count, used, result.mean_kld, result.mean_kld_stderr)
