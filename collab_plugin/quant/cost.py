"""From a tensor's relative error to the harm it does to the model's output."""

from __future__ import annotations

from collections.abc import Mapping

from collab_plugin.checkpoint.base import TensorInfo
from collab_plugin.checkpoint.roles import Role

# Harm of one unit of relative error, by role: KL divergence is about proportional to the squared
# relative error of a layer's output, with a factor for how much that output moves the logits.
ROLE_WEIGHT: Mapping[Role, float] = {
    Role.EMBEDDING: 1.0,
    Role.OUTPUT: 1.0,
    Role.ATTENTION: 1.0,
    Role.SHARED_EXPERT: 1.0,
    Role.FFN: 1.0,
    Role.EXPERT: 1.0,
    Role.OTHER: 1.0,
}


def harm(info: TensorInfo, error: float) -> float:
    """Predicted cost of quantizing ``info`` with this relative error (no unit; costs add up)."""
    return ROLE_WEIGHT.get(info.role, 1.0) * error
