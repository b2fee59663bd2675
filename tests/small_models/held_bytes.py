"""Stored tensors whose bytes are in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.formats.byte_file import ByteFile, Bytes
from collab_plugin.formats.safetensors_header import Stored


class HeldBytes(ByteFile):
    where = "memory"

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.size = data, len(data)

    def read(self, start: int, stop: int) -> Bytes:
        return self.data[start:stop].copy()


def held(name: str, dtype: str, shape: tuple[int, ...], data: NDArray[np.uint8]) -> Stored:
    return Stored(name, dtype, shape, HeldBytes(data), 0, len(data))
