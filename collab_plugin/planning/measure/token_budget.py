"""How many tokens a probe gets, and how many probes, so that all of them keep within a number of tokens."""

from __future__ import annotations

from collab_plugin.errors import CollabError
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.stats import Stats

CALIBRATIONS = 2
"""Tokens to spend unless told, in those that calibration took."""
TASKS_AT_ONCE = 15
"""Probes that share one run of the undisturbed model, and are kept together."""
GROUPS_SHARE, LEVELS_SHARE = 1 / 3, 1 / 2
"""Of the tokens, at most so many go to the first groups of tensors, and to prunings and errors of all tensors at once;
the rest tells layers apart."""
MOST_PRUNINGS = 12
"""Prunings that tokens are reckoned for; there are seldom more."""
MOST_WINDOWS, MOST_LEVEL_WINDOWS = 4, 8
"""Windows a probe at most. More of a group say less than more groups do (docs/quality.md §2)."""


def default_tokens(stats: Stats) -> int:
    """Twice what calibration took."""
    return CALIBRATIONS * stats.tokens


def windows_each(tokens: int, ctx: int, groups: int, levels: int) -> tuple[int, int]:
    """Windows of ``ctx`` tokens that each probe of ``groups`` groups of tensors runs at first, and each of up to
    ``levels`` prunings and errors of all tensors at once.

    CollabError when not even one window of each group holds ``tokens``.
    """
    least = _sequences(groups) * ctx
    if least > tokens:
        raise CollabError(
            f"`tokens` {tokens:,} are too few: one window of {ctx} tokens for each of {groups} groups of tensors takes "
            f"{least:,}; raise `tokens` or calibrate on more text"
        )

    def affordable(share: float, tasks: int, most: int) -> int:
        return max(1, min(most, int(share * tokens) // (_sequences(tasks) * ctx)))

    return affordable(GROUPS_SHARE, groups, MOST_WINDOWS), affordable(LEVELS_SHARE, levels, MOST_LEVEL_WINDOWS)


def tasks_left(tokens: int, found: Sensitivity, windows: int) -> int:
    """Probes of ``windows`` windows that one more round may have within ``tokens``."""
    return max(0, min(TASKS_AT_ONCE, (tokens - found.tokens_run) // (windows * found.ctx) - 1))


def _sequences(tasks: int) -> int:
    """Windows at a time that ``tasks`` probes take, those of the undisturbed model included."""
    return tasks + -(-tasks // TASKS_AT_ONCE)
