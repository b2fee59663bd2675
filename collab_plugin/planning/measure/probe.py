"""Probe a model: the KL divergence that errors of its parts cost, and pruning, while the model runs undamaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from collab_plugin.checkpoint.identity import model_id
from collab_plugin.compression.as_gguf import runnable
from collab_plugin.engines.disturbance import Disturbance, Effects, ErrorShape
from collab_plugin.errors import CollabError
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.measure.error_shapes import error_shapes
from collab_plugin.planning.measure.groups import Group, coarse
from collab_plugin.planning.measure.measuring import Measuring, check_disturbing
from collab_plugin.planning.measure.probe_order import Task, next_round
from collab_plugin.planning.measure.together import LEVELS, Together, errors_of_inputs
from collab_plugin.planning.measure.token_budget import MOST_PRUNINGS, default_tokens, windows_each
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.search_space import prunings_by_rule
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.stats.sensitivity import GroupProbe, PruningProbe, Sensitivity, TogetherProbe
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.text_hash import texts_sha256

PROBE_ERROR = 0.03
"""Relative squared error that is put in, about IQ3_XXS's: seen above the noise of the routers' choices, mild enough
that harm is still proportional to it (docs/quality.md §1)."""


def probe(
    planning: PlanningInput,
    measuring: Measuring,
    tokens: int | None = None,
    keep: Callable[[Sensitivity], None] = lambda found: None,
    progress: OnProgress = silent,
) -> Sensitivity:
    """Measure round by round until ``tokens`` have run or nothing is left, and return all probes there are.

    ``tokens`` None: twice those of the stats. What the sensitivity document of ``planning`` holds is not measured
    again, and its tokens count. ``keep`` gets all probes after every round, which is up to 15 tasks. The first rounds
    take every part of the model at three depths, the prunings that the request leaves open, and errors of all tensors
    at once; later ones split the groups with the largest KL divergence. Nothing is written but the document: the engine
    runs the model as it is, and disturbs what it computes.

    Raises CollabError without stats, when the tokens are too few for the first rounds' groups, and where the document
    at hand is of other stats, another text, windows or engine.
    """
    if planning.stats_source is None or planning.stats is None:
        raise CollabError("probing needs statistics, for errors and prunings to be like real ones: give `stats`")
    check_disturbing(planning, measuring)
    candidates = {rule: Candidates(each) for rule, each in planning.by_rule().items()}

    def pruned(found: Sensitivity) -> list[tuple[str, int, int]]:
        # Experts can be kept from being chosen while a model runs; its expert groups cannot be taken away.
        return [] if planning.policy == "disband" else prunings_by_rule(candidates, found)

    budget = default_tokens(planning.stats) if tokens is None else tokens
    groups, levels = len(coarse(planning.checkpoint)), MOST_PRUNINGS + len(LEVELS)
    each = windows_each(budget, measuring.windows.ctx, groups, levels)
    found = _begun(planning, planning.stats_source, measuring, each)
    pruned(found)  # what cannot be pruned is refused before anything runs
    model = runnable(measuring.engine, "disturb", planning.checkpoint, planning.request.threads, progress)
    shapes: dict[str, ErrorShape] = {}
    number = 0
    while (todo := next_round(planning.checkpoint, pruned(found), found, budget)).tasks:
        number += 1
        _add_shapes(planning, shapes, todo.tasks, progress)
        with track(progress, f"probing, round {number}", unit="tokens") as advance:
            effects = measuring.disturb(
                model,
                [_disturbance(candidates, task) for task in todo.tasks],
                shapes,
                most=todo.windows,
                threads=planning.request.threads,
                progress=advance,
            )
        found = _with(found, todo.tasks, effects, planning.stats)
        keep(found)
    return found


def _begun(planning: PlanningInput, stats: StatsSource, measuring: Measuring, each: tuple[int, int]) -> Sensitivity:
    """The document at hand, or one without probes; CollabError when the one at hand was measured otherwise."""
    windows = measuring.windows
    fresh = Sensitivity(
        model_id=model_id(planning.checkpoint),
        stats_sha256=stats.sha256,
        texts=windows.names,
        text_sha256=texts_sha256(windows.texts),
        ctx=windows.ctx,
        windows=each[0],
        level_windows=each[1],
        tokens=0,
        tokens_run=0,
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
        (f"by {old.engine}", old.engine, fresh.engine),
    ):
        if known != now:
            raise CollabError(f"{source.label} was probed {what}, and cannot go on here; name another file to write")


def _add_shapes(
    planning: PlanningInput, shapes: dict[str, ErrorShape], todo: Sequence[Task], progress: OnProgress
) -> None:
    """Shapes of the errors of every tensor that is to be disturbed."""
    disturbed = [task.what.tensors for task in todo if isinstance(task.what, Group)]
    disturbed += [tuple(task.what.errors) for task in todo if isinstance(task.what, Together)]
    names = [n for n in dict.fromkeys(n for tensors in disturbed for n in tensors) if n not in shapes]
    if not names:
        return
    with track(progress, "reading what errors will be like", unit="slices") as advance:
        shapes |= error_shapes(planning.checkpoint, names, planning.imatrix, planning.request.threads, advance)


def _disturbance(candidates: Mapping[str, Candidates], task: Task) -> Disturbance:
    if isinstance(task.what, Group):
        return Disturbance(errors=dict.fromkeys(task.what.tensors, PROBE_ERROR))
    if isinstance(task.what, Together):
        return Disturbance(errors=task.what.errors, rounded=task.what.rounded)
    rule, count, used = task.what
    candidate = candidates[rule].candidate(count, used)
    return Disturbance(kept=candidate.plan.pruning.kept, experts_used=used)


def _with(found: Sensitivity, todo: Sequence[Task], effects: Effects, stats: Stats) -> Sensitivity:
    groups, pruned, together = list(found.groups), list(found.prunings), list(found.together)
    for task, effect in zip(todo, effects.each, strict=True):
        if isinstance(task.what, Group):
            error = PROBE_ERROR * len(task.what.tensors)
            groups.append(GroupProbe(task.what.tensors, error, effect.mean_kld, effect.stderr))
        elif isinstance(task.what, Together):
            inputs = errors_of_inputs(task.what, stats.rounding)
            together.append(TogetherProbe(task.what.errors, inputs, effect.mean_kld, effect.stderr))
        else:
            pruned.append(PruningProbe(*task.what, effect.mean_kld, effect.stderr))
    if len(groups) > len(found.groups):
        found = replace(found, windows=effects.windows, tokens=effects.scored)
    else:
        found = replace(found, level_windows=effects.windows)
    return replace(
        found,
        tokens_run=found.tokens_run + effects.tokens_run,
        groups=tuple(groups),
        prunings=tuple(pruned),
        together=tuple(together),
    )
