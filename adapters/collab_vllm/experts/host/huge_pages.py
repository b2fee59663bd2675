"""Host memory in pages of 2 MB: experts are read in long runs all over it, and large pages are found faster."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_PAGE = 2 * 2**20
_WORTHWHILE = 4 * _PAGE
"""Smaller memory is allocated as usual: half a page is lost at each end."""


def host_bytes(shape: Sequence[int]) -> Tensor:
    """An uninitialized uint8 tensor in host memory. The system decides whether its pages are large; Linux is asked."""
    size = torch.Size(shape).numel()
    if size < _WORTHWHILE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(tuple(shape), dtype=torch.uint8, device="cpu")
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _PAGE
    return whole[start : start + size].view(tuple(shape))
