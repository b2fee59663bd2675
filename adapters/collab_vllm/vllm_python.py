"""Where vLLM's Python is: one answer for the engine, the targets of `verify` and tests."""

from __future__ import annotations

import importlib.util
import shutil
import sys

from collab_plugin.engines.program_settings import Setting, configured
from collab_plugin.errors import CollabError

PYTHON = Setting("vllm_python", "COLLAB_VLLM")


def vllm_python() -> str:
    """The Python that ``COLLAB_VLLM`` or the settings name, else this one when vLLM is installed here.

    CollabError when what is named is no program, and when there is none.
    """
    named = configured(PYTHON)
    if named is not None:
        found = shutil.which(named.value)
        if found is None:
            raise CollabError(
                f"{named.source} is {named.value}, which is no program; give the Python of vLLM's environment"
            )
        return found
    if not vllm_is_here():
        raise CollabError(
            "vLLM is not installed here: pip install 'collab-plugin[vllm]', or give the Python of an environment "
            f"that has it: {PYTHON.how_to_give()}"
        )
    return sys.executable


def vllm_is_here() -> bool:
    """True when this Python has vLLM; a folder of that name on the path is no package."""
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None
