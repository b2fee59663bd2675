"""Import vLLM in less time."""

from __future__ import annotations

import gc
from typing import Any


def import_vllm() -> Any:
    """Return the module `vllm`, with `vllm.LLM` loaded.

    The million objects that this makes stay. Python would look through them again and again, which takes 1.8 of 6
    seconds of the import, and vLLM has it do so nine times while an engine starts and ends: they are left out of that.
    """
    gc.disable()
    try:
        import vllm
        from vllm import LLM  # noqa: F401  # loaded with its first use
    finally:
        gc.enable()
    gc.freeze()
    return vllm
