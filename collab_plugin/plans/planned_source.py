"""The checkpoint as a plan sees it."""

from __future__ import annotations

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import fingerprint
from collab_plugin.checkpoint.prediction_layers import trunk
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan


def as_planned(checkpoint: Checkpoint, plan: Plan) -> Checkpoint:
    """The checkpoint, or it without its prediction layers, whichever ``plan`` was made for; else CollabError."""
    if fingerprint(checkpoint) == plan.source.fingerprint:
        return checkpoint
    without = trunk(checkpoint)
    if without is not checkpoint and fingerprint(without) == plan.source.fingerprint:
        return without
    raise CollabError(
        f"the plan was made for another checkpoint than {checkpoint.address} "
        f"({plan.source.name}, {plan.source.fingerprint[:19]}...); make it again"
    )
