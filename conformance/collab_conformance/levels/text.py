"""Text level: greedy continuations equal to the pack's, or parting where either side's token was in the other's
top 5 (vLLM's rule for its own models).

``text.broken``: prompts that break the rule; ``text.parted``: prompts that part at all. The short form leaves
long prompts out.
"""

from __future__ import annotations

from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.measures import FirstDifference, first_difference
from collab_plugin.engines.target import NotOfferedError


def checks(running: Running) -> list[Planned]:
    """See the module."""
    figures = {
        "text.broken": lambda: sum(not d.accepted for d in _differences(running)),
        "text.parted": lambda: sum(d.step is not None for d in _differences(running)),
    }
    return [Planned("text", name, running.subject.name, measure) for name, measure in figures.items()]


def _differences(running: Running) -> list[FirstDifference]:
    return running.kept("greedy", lambda: _measure(running))


def _measure(running: Running) -> list[FirstDifference]:
    recorded = [(prompt, recording.greedy) for prompt, recording in running.prompts if recording.greedy is not None]
    if not recorded:
        raise NotOfferedError("the pack has no greedy texts")
    session = running.session()
    return [
        first_difference(greedy.ids, session.greedy(prompt.tokens, prompt.greedy_steps).ids)
        for prompt, greedy in recorded
    ]
