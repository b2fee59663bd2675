"""The importance vector of one slice of a tensor."""

from __future__ import annotations

import numpy as np

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.stats.stats import Stats


def importance(
    info: TensorInfo, index: int | None, kind: str, stats: Stats | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Return the importance vector f32[row width] of one slice; None where the stats have none."""
    entry = stats.imatrix.get(info.name) if stats is not None else None
    if entry is None or not kind.startswith(("Q", "IQ")):
        if TYPES[kind].needs_imatrix:
            raise CollabError(f"{info.name} cannot be {kind} without an importance matrix: calibrate, or give `stats`")
        return None
    try:
        return entry.vector(index or 0, info.shape[-1], stats.borrow if stats else 0.0)
    except ValueError as error:
        raise CollabError(f"the stats are of another model: {info.name}: {error}") from None
