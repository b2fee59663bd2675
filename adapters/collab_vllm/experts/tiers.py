"""Where experts' weights live: some on the device, the others in host memory.

Which are hot is a placement policy's choice (collab_plugin/placement/policy.py), made once. A policy that moves experts
while the model runs belongs behind `Tiered.of`: all that a forward pass asks is the weights of one expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Tiered:
    """The rows of ``whole`` [experts, ...]: those of ``hot`` on ``device``, the rest in host memory.

    Host memory is pinned where ``device`` is a GPU, so that a copy does not wait.
    """

    def __init__(self, whole: Tensor, hot: Sequence[int], device: torch.device) -> None:
        cold = sorted(set(range(len(whole))) - set(hot))
        self.place = {expert: (True, slot) for slot, expert in enumerate(hot)}
        self.place |= {expert: (False, slot) for slot, expert in enumerate(cold)}
        self.hot = whole[list(hot)].to(device)
        self.cold = whole[cold].cpu()
        if device.type == "cuda":
            self.cold = self.cold.pin_memory()

    def of(self, expert: int) -> Tensor:
        """The expert's row, on the device: a copy when it is cold."""
        hot, slot = self.place[expert]
        return self.hot[slot] if hot else self.cold[slot].to(self.hot.device, non_blocking=True)
