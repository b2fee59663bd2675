"""`report`: what a plan decided and how good it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from collab_plugin.api.arguments import AnyPath, Model, opened, plan_of, source_of
from collab_plugin.engines.results import Evaluation
from collab_plugin.placement.run_setup import DEFAULT_SETUP, RunSetup
from collab_plugin.plans.plan import Plan
from collab_plugin.plugins.manager import registry
from collab_plugin.reports.gather import Extras, Facts, gather, stats_beside
from collab_plugin.reports.measured import measured, read_evaluation, read_rivals
from collab_plugin.stats.stats import Stats


def report(
    plan: Plan | AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    model: Model | None = None,
    evaluations: Sequence[Evaluation | AnyPath] = (),
    rivals: AnyPath | None = None,
    setup: RunSetup = DEFAULT_SETUP,
) -> Facts:
    """Gather what ``plan`` decided and how good it is; `write_report` makes a page and plots of it.

    ``stats``: those that the plan used; where not given, the file of that name beside the plan's file.
    ``model``: for what its metadata says. ``evaluations``: of the plan's file, by `evaluate`, or files of
    ``evaluate --json``. ``rivals``: CSV of other files to compare with (rival, bytes, mean_kld). ``setup``: how it
    is run, for its memory. What is not given is named in ``left_out``.

    Example: ``cp.write_report(cp.report("plan.json", model="DeepSeek-V3/"), "report.html")``
    """
    decided, folder = plan_of(plan)
    if stats is None and folder is not None:
        stats = stats_beside(decided, folder)
    source = None if stats is None else source_of(stats)
    known = decided.calibration.sha256 if decided.calibration else None
    extras = Extras(
        stats=source.stats if source else None,
        stats_same=source is None or source.sha256 == known,
        model=None if model is None else opened(model),
        evaluations=tuple(
            read_evaluation(Path(e)) if isinstance(e, (str, os.PathLike)) else measured(e) for e in evaluations
        ),
        rivals=() if rivals is None else read_rivals(Path(rivals), decided.source.name),
        setup=setup,
    )
    return gather(decided, extras, registry().criteria)
