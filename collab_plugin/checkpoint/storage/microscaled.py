"""Floats of four bits (E2M1) with a small float as the scale of 32 (MXFP4) or of 16 values (NVFP4)."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType as Type

from collab_plugin.checkpoint.checkpoint import F32, Bytes
from collab_plugin.checkpoint.storage.nibbles import block_nibbles, blocks_behind_scales, split_nibbles
from collab_plugin.checkpoint.storage.small_floats import E2M1, E4M3, NO_E8M0
from collab_plugin.checkpoint.storage.stored_matrix import Matrix, Rows, as_stored_type, floats, need_shape, stored_rows
from collab_plugin.errors import CollabError
from collab_plugin.formats.safetensors_header import Stored

_SUPER_BLOCK = 64
_LARGEST_E4M3 = 0x7E
"""The code of 448; the next one is NaN, and beyond it are those with a sign."""


class Mxfp4(Matrix):
    """``codes`` [..., columns / 2], or [..., columns / 32, 16] as gpt-oss has them; ``scales`` [..., columns / 32]
    are powers of two.

    Values are exact in BF16, and a GGUF's MXFP4 has the same codes and the same scales.
    """

    native = Type.MXFP4

    def __init__(self, name: str, codes: Stored, scales: Stored) -> None:
        by_block = len(codes.shape) == len(scales.shape) + 1 and codes.shape[-1] == 16
        rows = codes.shape[:-2] if by_block else codes.shape[:-1]
        columns = (codes.shape[-2] * 32) if by_block else codes.shape[-1] * 2
        if len(rows) not in (1, 2) or codes.dtype not in ("U8", "I8") or columns % 32:
            raise CollabError(f"{codes.name} is {codes.dtype} {codes.shape}, which is no MXFP4: 32 values a scale")
        need_shape(scales, [(*rows, columns // 32)], ("U8", "F8_E8M0"), "an exponent for 32 values")
        self.name, self.shape, self.parts, self.type = name, (*rows, columns), (codes, scales), Type.BF16

    def values(self, rows: Rows | None = None) -> F32:
        found = E2M1[self._codes(rows)]
        found.reshape(*found.shape[:-1], -1, 32)[...] *= floats(self.parts[1], rows)[..., None]
        return found

    def native_rows(self, rows: Rows | None = None) -> Bytes:
        scales = stored_rows(self.parts[1], rows)
        if (scales == NO_E8M0).any():
            raise CollabError(f"{self.parts[1].name} holds scales that are no number; the checkpoint is damaged")
        return blocks_behind_scales(scales[..., None], block_nibbles(self._codes(rows)))

    def _codes(self, rows: Rows | None) -> Bytes:
        packed = stored_rows(self.parts[0], rows)
        return split_nibbles(packed.reshape(*packed.shape[: len(self.shape) - 1], self.shape[-1] // 2))


class Nvfp4(Matrix):
    """``codes`` [rows, columns / 2], ``scales`` E4M3 [rows, columns / 16], and one float32 for the whole matrix that
    scales are divided by (compressed-tensors) or multiplied with (ModelOpt, ``multiply``).

    Values are rounded to BF16: the product of three factors is no longer exact in it. A GGUF's NVFP4 has the same codes
    and scales, in blocks of 64 values, and leaves out what is one for the matrix: `factor`.
    """

    def __init__(self, name: str, codes: Stored, scales: Stored, whole: Stored, *, multiply: bool) -> None:
        if len(codes.shape) != 2 or codes.dtype != "U8" or codes.shape[1] % 8:
            raise CollabError(f"{codes.name} is {codes.dtype} {codes.shape}, which is no NVFP4: 16 values a scale")
        need_shape(scales, [(codes.shape[0], codes.shape[1] // 8)], ("F8_E4M3",), "a scale for 16 values")
        need_shape(whole, [(), (1,)], ("F32",), "one scale for the matrix")
        self.name, self.shape, self.type = name, (codes.shape[0], codes.shape[1] * 2), Type.BF16
        self.parts, self._multiply = (codes, scales, whole), multiply
        if self.shape[1] % _SUPER_BLOCK == 0:
            self.native = Type.NVFP4

    @property
    def factor(self) -> float:
        """What every value at `native` is to be multiplied with. CollabError when that is no number."""
        whole = float(floats(self.parts[2]).reshape(()))
        found = np.float32(whole if self._multiply else 1 / whole if whole else np.inf)
        if not np.isfinite(found):
            raise CollabError(f"{self.parts[2].name} holds a scale that is no number; the checkpoint is damaged")
        return float(found)

    def native_rows(self, rows: Rows | None = None) -> Bytes:
        codes, scales, _ = self.parts
        local = stored_rows(scales, rows)
        if (local > _LARGEST_E4M3).any():
            raise CollabError(f"{scales.name} holds scales that are negative or no number; the checkpoint is damaged")
        nibbles = block_nibbles(split_nibbles(stored_rows(codes, rows)), 16)
        blocks = self.shape[1] // _SUPER_BLOCK
        return blocks_behind_scales(local.reshape(-1, blocks, 4), nibbles.reshape(-1, blocks, _SUPER_BLOCK // 2))

    def values(self, rows: Rows | None = None) -> F32:
        codes, scales, whole = self.parts
        factor = floats(whole).reshape(())
        local = E4M3[stored_rows(scales, rows)]
        local = local * factor if self._multiply else local / factor
        found = E2M1[split_nibbles(stored_rows(codes, rows))]
        found.reshape(*found.shape[:-1], -1, 16)[...] *= local[..., None]
        return as_stored_type(np.asarray(found, np.float32), self.type)
