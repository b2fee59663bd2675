"""What measures: an engine on text. Checked before minutes are spent."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.engines.ability import check_able, check_reads
from collab_plugin.engines.engine import Ability, Engine, Windows
from collab_plugin.errors import CollabError
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.stats.stats import Stats

_NEEDED: tuple[Ability, ...] = ("reference", "evaluate")


@dataclass(frozen=True)
class Measuring:
    """``engine`` compares models with the original on ``windows``."""

    engine: Engine
    windows: Windows


def default_ctx(stats: Stats | None) -> int:
    """Tokens a window when nothing is said: as many as calibration used."""
    return stats.chunk_size if stats is not None else Windows(()).ctx


def check_disturbing(planning: PlanningInput, measuring: Measuring) -> None:
    """CollabError when the engine cannot disturb a running model, or the request has nothing to measure."""
    if planning.request.layers == "varied":
        raise CollabError("`layers` varied cannot be probed: leave it out, what is measured counts for such plans too")
    check_able(measuring.engine, "disturb")
    check_reads(measuring.engine, "gguf", "what is measured")


def check_measuring(planning: PlanningInput, measuring: Measuring) -> None:
    """CollabError when there is nothing to measure, or the engine cannot."""
    if planning.request.keep_types:
        raise CollabError("`confirm` has nothing to measure with `keep_types`; leave it out")
    if planning.request.layers == "varied":
        raise CollabError(
            "`confirm` measures GGUF files, which have one number of experts for all layers; leave it out with "
            "`layers` varied (what `probe` measured counts for this plan too)"
        )
    for ability in _NEEDED:
        check_able(measuring.engine, ability)
    check_reads(measuring.engine, "gguf", "what is measured")
    planning.needed_kernels()
