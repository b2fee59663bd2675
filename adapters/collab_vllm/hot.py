"""Which experts of a layer are hot: the most used of calibration, or the plan's first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab_plugin.stats_file import read_stats

if TYPE_CHECKING:
    from collab_vllm.startup import Prepared


def hot_experts(prepared: Prepared, block: int, experts: int) -> list[int] | None:
    """Ids, in this model's numbers, of the ``hot`` experts of layer ``block``; None when all are on the device.

    By selections in the plan's stats file when that lies beside the plan, else the first ones: a plan made
    with `--order importance` has the most important first.
    """
    wanted = prepared.options.hot
    if wanted is None:
        return None
    plan, path = prepared.plan, prepared.options.plan
    if plan is None or path is None or plan.calibration is None:
        return list(range(wanted))
    stats = path.parent / plan.calibration.file
    if not stats.is_file():
        return list(range(wanted))
    count = read_stats(stats).routing[block].count
    kept = plan.pruning.kept.get(block) or range(experts)
    order = sorted(range(experts), key=lambda new: (-int(count[kept[new]]), new))
    return sorted(order[:wanted])
