"""The importance matrix as it is used: an importance vector for one slice of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.formats.tensor_names import Role
from collab_plugin.stats.stats import ImatrixEntry, Stats


@dataclass(frozen=True)
class ImportanceMatrix:
    """``entries`` by GGUF tensor name; ``borrow``: see `ImatrixEntry.vector`."""

    entries: Mapping[str, ImatrixEntry]
    borrow: float

    @classmethod
    def of(cls, stats: Stats | None, borrow: float) -> ImportanceMatrix | None:
        """The matrix of ``stats``; None without stats."""
        return None if stats is None else cls(stats.imatrix, borrow)


def importance_vector(
    info: TensorInfo, index: int | None, kind: str, matrix: ImportanceMatrix | None
) -> NDArray[np.float32] | None:
    """Return the importance vector f32[row width] of slice ``index``; None where the matrix has none.

    The embedding's rows are looked up: no input weighs their columns, so all count alike.
    """
    entry = matrix.entries.get(info.name) if matrix is not None else None
    if matrix is None or entry is None or not kind.startswith(("Q", "IQ")):
        if info.role == Role.EMBEDDING and TYPES[kind].wants_imatrix:
            return np.ones(info.shape[-1], np.float32)
        if TYPES[kind].needs_imatrix:
            raise CollabError(f"{info.name} cannot be {kind} without an importance matrix: calibrate, or give `stats`")
        return None
    try:
        return entry.vector(index or 0, info.shape[-1], matrix.borrow)
    except ValueError as error:
        raise CollabError(f"the stats are of another model: {info.name}: {error}") from None
