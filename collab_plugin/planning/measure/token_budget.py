"""How many tokens a probe gets, and how many probes, so that all of them keep within a number of tokens."""

from __future__ import annotations

from collab_plugin.errors import CollabError
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.stats import Stats

CALIBRATIONS = 2
"""Tokens to spend unless told, in those that calibration took."""
TASKS_AT_ONCE = 15
"""Probes that share one run of the undisturbed model, and are kept together."""
FIRST_SHARE = 0.5
"""Of the tokens, at most so many go to the first probes; the rest tells layers apart."""
MOST_PRUNINGS = 12
"""Prunings that the first half of the tokens is reckoned for; there are seldom more."""
MOST_WINDOWS = 8
"""Windows a probe at most: more of them say less than more probes do (docs/quality.md §2)."""


def default_tokens(stats: Stats) -> int:
    """Twice what calibration took."""
    return CALIBRATIONS * stats.tokens


def windows_each(tokens: int, ctx: int, groups: int, prunings: int) -> int:
    """Windows of ``ctx`` tokens that each probe runs, for ``groups`` groups of tensors at first and up to ``prunings``
    prunings.

    CollabError when not even one window of each group holds ``tokens``.
    """
    least = _sequences(groups) * ctx
    if least > tokens:
        raise CollabError(
            f"`tokens` {tokens:,} are too few: one window of {ctx} tokens for each of {groups} groups of tensors takes "
            f"{least:,}; raise `tokens` or calibrate on more text"
        )
    affordable = int(FIRST_SHARE * tokens) // (_sequences(groups + prunings) * ctx)
    return max(1, min(MOST_WINDOWS, affordable))


def tasks_left(tokens: int, found: Sensitivity) -> int:
    """Probes that one more round may have within ``tokens``."""
    return max(0, min(TASKS_AT_ONCE, (tokens - found.tokens_run) // (found.windows * found.ctx) - 1))


def _sequences(tasks: int) -> int:
    """Windows at a time that ``tasks`` probes take, those of the undisturbed model included."""
    return tasks + -(-tasks // TASKS_AT_ONCE)
