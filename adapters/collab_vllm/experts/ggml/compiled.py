"""Functions of blocks as one loop instead of an operation after the other: C++ on processors, Triton on GPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger("vllm.collab")


class Compiled:
    """``function`` through torch.compile, whatever the number of blocks; as it is where nothing can be compiled.

    The first call compiles: seconds, and less than one where torch's cache (TORCHINDUCTOR_CACHE_DIR) has it.
    Results are ``function``'s to the bit. TORCH_COMPILE_DISABLE=1 turns it off.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._plain = function
        self._fast: Callable[..., Tensor] | None = torch.compile(function)

    def __call__(self, blocks: Tensor, *tables: Tensor) -> Tensor:
        """``function(blocks, *tables)``: uint8[n, block bytes] to f32[n, block values]."""
        # Always the same mode: code compiled in another would be compiled again.
        with torch.inference_mode():
            if self._fast is not None:
                try:
                    torch._dynamo.maybe_mark_dynamic(blocks, 0)
                    return self._fast(blocks, *tables)
                except Exception as error:  # of a compiler, whichever it is; the plain function needs none
                    self._fast = None
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    logger.warning("collab: %s is not compiled, and slower: %s", self._plain.__name__, reason)
            return self._plain(blocks, *tables)
