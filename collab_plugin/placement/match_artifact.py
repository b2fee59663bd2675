"""Is a placement for this artifact?"""

from __future__ import annotations

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import Placement


def check_made_for(placement: Placement, artifact: Checkpoint) -> None:
    """CollabError when ``artifact`` is another than ``placement`` was made for, by its tensors and their bytes."""
    tensors, address = artifact.tensors, artifact.address
    if unknown := [name for name in placement.tensors.tiers if name not in tensors]:
        raise CollabError(f"the placement is for another model: {address} has no {unknown[0]}; place it again")
    if (size := sum(info.nbytes for info in tensors.values())) != placement.artifact.bytes:
        raise CollabError(
            f"the placement is for another model: {placement.artifact.name} of {placement.artifact.bytes:,} bytes, and "
            f"{address} has {size:,}; place it again"
        )
