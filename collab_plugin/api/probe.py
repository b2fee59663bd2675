"""`probe`: what quantizing each part of a model costs, and what pruning costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from collab_plugin.api.arguments import (
    AnyPath,
    Model,
    at_least,
    criterion_of,
    measuring_of,
    opened,
    sensitivity_of,
    source_of,
    threads_of,
)
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.engines.engine import Engine
from collab_plugin.formats.output_path import check_output
from collab_plugin.planning.allocators.knapsack import KNAPSACK
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.measure.probe import probe as measure
from collab_plugin.planning.options import OptionValue
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.prediction import prunable
from collab_plugin.planning.request import PlanRequest
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.progress import OnProgress, silent
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.sensitivity_file import write_sensitivity
from collab_plugin.stats.stats import Stats


def probe(
    model: Model,
    *,
    stats: Stats | AnyPath,
    texts: AnyPath | Sequence[AnyPath],
    out: AnyPath | None = None,
    tokens: int | None = None,
    ctx: int | None = None,
    engine: str | Engine = "llamacpp",
    experts_used: int | Literal["auto"] | None = None,
    criterion: str | ImportanceCriterion = "auto",
    criterion_options: Mapping[str, OptionValue] | None = None,
    groups: GroupPolicy | None = None,
    allow_few_tokens: bool = False,
    cluster: str | None = None,
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: OnProgress = silent,
) -> Sensitivity:
    """Measure what quantizing each part of the model costs, and what pruning costs, in nats.

    ``stats``: of `calibrate`, or any imatrix GGUF. ``texts``: UTF-8 files to measure on, in windows of ``ctx`` tokens
    (default: as the stats were calibrated) that are evenly spread over them. ``tokens``: what may run through the
    model in all, by default twice what calibration took. ``out``: file of the document: probes that it holds are not
    measured again, and it is written also when the work is interrupted. ``criterion``,
    ``criterion_options``, ``groups`` and ``experts_used`` are those that plans will have: prunings are measured by
    that rule; ``allow_few_tokens``: although calibration saw too few. ``warn`` gets one sentence where windows are
    longer than what the model was trained for. ``cluster``: address of a Ray cluster whose workers run the windows,
    ``threads`` cores a worker, with the same numbers; texts and the model's GGUF lie on storage that all of them see.
    The model runs as it is and is disturbed while it runs: nothing is written but ``out``.

    Raises CollabError when ``tokens`` are too few to measure every part, or ``out`` holds probes of another model,
    text, stats or engine.

    Example: ``cp.probe("DeepSeek-V3/", stats="stats.gguf", texts="english.txt", out="sensitivity.json")``
    """
    if out is not None:
        check_output(Path(out))
    source = source_of(stats)
    checkpoint = prunable(opened(model), source.stats, "auto", groups, keep_types=False)
    request = PlanRequest(
        budget=None,
        criterion=criterion_of(criterion),
        criterion_options=criterion_options or {},
        allocator=KNAPSACK,  # never asked: nothing is planned
        experts_used=experts_used,
        groups=groups,
        allow_few_tokens=allow_few_tokens,
        threads=threads_of(threads),
    )
    begun = None if out is None or not Path(out).exists() else sensitivity_of(out)
    planning = PlanningInput(checkpoint, topology_of(checkpoint), request, source, begun)

    if tokens is not None:
        at_least("tokens", tokens, 1)
    measuring = measuring_of(engine, texts, ctx, None, planning.stats, cluster)
    if note := window_note(checkpoint, measuring.windows.ctx):
        warn(note)

    def keep(found: Sensitivity) -> None:
        if out is not None:
            write_sensitivity(Path(out), found)

    return measure(planning, measuring, tokens, keep, progress)
