"""The quantization kernels that an engine brings."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Kernels(ABC):
    """Quantize and dequantize rows in ggml block formats. Types are ggml names ("IQ2_XXS").

    Both calls release the GIL and may run in many threads once ``prepare`` was called.
    """

    name: str

    @abstractmethod
    def version(self) -> str:
        """Return name and build of the library, as recorded in plans."""

    @abstractmethod
    def types(self) -> tuple[str, ...]:
        """Return the types that `quantize` can write."""

    @abstractmethod
    def requires_imatrix(self, type_name: str) -> bool:
        """True when quantizing to this type without an importance vector is refused."""

    @abstractmethod
    def prepare(self, type_name: str) -> None:
        """Build the type's tables (up to 11 CPU-seconds for IQ1); call once before threading. Several types at once."""

    @abstractmethod
    def quantize(self, values: F32, type_name: str, imatrix: F32 | None = None) -> Bytes:
        """Quantize ``values`` f32[rows, n] to uint8[rows, bytes a row]; ``imatrix`` f32[n].

        Raises ValueError when n is not a multiple of the block size, the imatrix has another
        length or is missing where required, and CollabError for values that the type cannot hold: the native code
        would abort.
        """

    @abstractmethod
    def dequantize(self, data: Bytes, type_name: str, n: int) -> F32:
        """Inverse of `quantize`: uint8[rows, bytes a row] to f32[rows, n]."""
