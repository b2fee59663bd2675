"""From what a plan is made of to the plan that is written: search, then confirm if asked."""

from __future__ import annotations

from collab_plugin.planning.measure.confirm import confirm_plans
from collab_plugin.planning.measure.measuring import Measuring, check_measuring
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.repaired_errors import repaired_errors
from collab_plugin.planning.search import make_plans
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import OnProgress, silent, track


def decide(
    planning: PlanningInput,
    *,
    confirm: int = 0,
    measuring: Measuring | None = None,
    progress: OnProgress = silent,
) -> Plan:
    """Return the plan. With ``confirm`` the best so many candidates are built and measured, and the winner is the plan.

    Raises CollabError for a request that cannot be met, before anything is measured where that can be known.
    """
    if not confirm:
        return _measured(planning, 1, progress)[0]
    if measuring is None:
        raise TypeError("candidates are measured by an engine on text: give measuring")
    check_measuring(planning, measuring)
    return confirm_plans(_measured(planning, confirm, progress), planning, measuring, progress)


def _measured(planning: PlanningInput, count: int, progress: OnProgress) -> tuple[Plan, ...]:
    repaired = repaired_errors(planning, progress)
    with track(progress, "measuring quantization errors", unit="errors") as report:
        return make_plans(planning, count, report, repaired=repaired)
