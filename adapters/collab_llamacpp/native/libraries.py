"""llama.cpp's shared libraries on disk. Imports nothing that is native or slow."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from collab_plugin.errors import CollabError

# llama-cpp-python's own variable: another folder of libraries than the one that it installed.
OTHER_FOLDER = "LLAMA_CPP_LIB_PATH"
SUFFIXES = (".so", ".dylib", ".dll")


def installed_folder() -> Path:
    """llama-cpp-python's folder of shared libraries, found without importing it."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise CollabError("llama-cpp-python is not installed: pip install 'collab-plugin[llamacpp]'")
    return Path(spec.origin).parent / "lib"


def library_folder() -> Path:
    """The folder that `import llama_cpp` loads from."""
    other = os.environ.get(OTHER_FOLDER)
    return Path(other) if other else installed_folder()


def library(stem: str, folder: Path) -> Path:
    """The shared library ``stem`` ("llama", "ggml-base") of ``folder``; CollabError when there is none."""
    names = [f"{prefix}{stem}{suffix}" for suffix in SUFFIXES for prefix in ("lib", "")]
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise CollabError(f"no {stem} library in {folder}: reinstall llama-cpp-python, or name another folder")
    return found
