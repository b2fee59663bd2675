"""Tensors of a GGUF whose values are stored in another order or form, and those that are stored nowhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.storage.stored_matrix import Matrix
from collab_plugin.checkpoint.tensor_sources import TensorSource

Order = NDArray[np.intp]
"""Numbers of stored rows or columns, in the order in which the GGUF has them; it may have fewer."""


class Rearranged(TensorSource):
    """Rows or columns of a stored tensor in another order, or every value through a function.

    ``rows`` and ``columns``: the GGUF's order, None as stored. ``function``: of values, elementwise; what it gives is
    float32. ``shape``: of what comes out where its axes are others than those of ``rows`` and the stored ones, such as
    a vector stored as a matrix of one row, or a matrix stored as a vector. ``float32`` widens values. Reading rows
    touches no others.
    """

    def __init__(
        self,
        matrix: Matrix,
        float32: bool,
        *,
        rows: Order | None = None,
        columns: Order | None = None,
        function: Callable[[F32], F32] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.matrix, self.matrices, self._function, self._columns = matrix, [matrix], function, columns
        self.type = Type.F32 if float32 or function is not None else matrix.type
        count = matrix.shape[0] if rows is None else len(rows)
        self._rows: Order = np.arange(count) if rows is None else rows
        self.shape = (count, *matrix.shape[1:]) if shape is None else shape

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if expert is not None:
            row: F32 = self.values(None, slice(expert, expert + 1))[0]
            return row if rows is None else row[rows]
        wanted = self._rows
        if rows is not None and len(self.shape) > 1:
            wanted = wanted.reshape(self.shape[0], -1)[rows].reshape(-1)
        found = self.matrix.values(wanted)
        if self._columns is not None:
            found = found[..., self._columns]
        if self._function is not None:
            found = self._function(found).astype(np.float32, copy=False)
        return found.reshape((-1, *self.shape[1:]) if len(self.shape) > 1 else self.shape)


class Constant(TensorSource):
    """``made``: a tensor that follows from config.json and is stored nowhere, as float32."""

    def __init__(self, made: F32) -> None:
        self.made, self.matrices, self.shape, self.type = made.astype(np.float32), [], made.shape, Type.F32

    def values(self, expert: int | None, rows: slice | None) -> F32:
        return self.made if rows is None else self.made[rows]
