"""The llama.cpp builds that targets come from: the one that llama_cpp loads, and those that the user names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from collab_llamacpp.native.libraries import OTHER_FOLDER, SUFFIXES, installed_folder, library, library_folder
from collab_plugin import CollabError
from collab_plugin.engines.program_settings import Setting, configured

LIBRARIES = Setting("llama_libraries", "COLLAB_LLAMA_LIBRARIES")
"""Folders of libraries to verify beside the installed ones, separated as PATH is."""
_BACKEND = re.compile(rf"(?:lib)?ggml-(.+?)(?:{'|'.join(map(re.escape, SUFFIXES))})")


@dataclass(frozen=True)
class Build:
    """A folder with libllama; ``installed`` when it came with llama-cpp-python."""

    folder: Path
    installed: bool

    def environment(self) -> dict[str, str]:
        """For a child that uses it: the folder, and the lines NAME=VALUE of its file `environment`, where its
        maker says what its backends need. A search path goes before the one that is set."""
        found = {} if self.installed else {OTHER_FOLDER: str(self.folder)}
        path = self.folder / "environment"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for line in lines:
            name, equals, value = line.partition("=")
            if not equals:
                raise CollabError(f"{path}: {line!r} is no NAME=VALUE")
            before = os.environ.get(name) if name.endswith("LIBRARY_PATH") else None
            found[name] = f"{value}{os.pathsep}{before}" if before else value
        return found

    def describe(self, ggml_version: str) -> str:
        if self.installed:
            return f"llama-cpp-python {version('llama-cpp-python')}, ggml {ggml_version}"
        return f"ggml {ggml_version} in {self.folder}"


def builds() -> list[Build]:
    """Named folders first, so that a target which two have is the named one; then the one of `import llama_cpp`."""
    named = configured(LIBRARIES)
    folders = [Path(part).absolute() for part in named.value.split(os.pathsep) if part] if named else []
    for folder in folders:
        try:
            library("llama", folder)
        except CollabError:
            source = named.source if named else ""
            raise CollabError(f"{source} names {folder}, which holds no libllama; give a folder that does") from None
    own = library_folder()
    return [*(Build(folder, False) for folder in folders), Build(own, own == installed_folder())]


def backend_libraries(folder: Path) -> dict[str, Path]:
    """Backends of ``folder`` by what follows "ggml-" in their file names: "cpu-haswell", "vulkan"."""
    found = ((_BACKEND.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    return {match[1]: path for match, path in found if match and match[1] != "base"}
