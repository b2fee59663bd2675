"""From a target's name to a device of the library that this process has loaded."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from collab_llamacpp.native.ggml import Ggml
from collab_llamacpp.targets.builds import backend_libraries
from collab_llamacpp.targets.ggml_devices import kind_of
from collab_plugin import CollabError

NO_REPACK = "-norepack"


@dataclass(frozen=True)
class DeviceSelection:
    """``kind`` and ``index`` as in target names; ``device`` a ggml_backend_dev_t; ``extra_buffers``: whether
    weights may be repacked."""

    kind: str
    index: int
    device: int
    extra_buffers: bool

    @property
    def offloads(self) -> bool:
        """Whether the device holds layers: the CPU and BLAS, which computes beside it, do not."""
        return self.kind not in ("cpu", "blas")


def select(lib: Ggml, folder: Path, name: str) -> DeviceSelection:
    """Find the device of ``name`` ("cpu-haswell", "vulkan:0"), loading its backend where it is not linked in."""
    extra_buffers = not name.endswith(NO_REPACK)
    kind, _, number = name.removesuffix(NO_REPACK).partition(":")
    if not lib.ggml_backend_reg_count():
        _load(lib, folder, kind)
    kind = kind.partition("-")[0]
    found = [device for device in lib.devices() if kind_of(lib.backend_of(device)) == kind]
    index = int(number or 0)
    if index >= len(found):
        raise CollabError(f"{folder} has no device {name}: `collab-plugin verify --list` shows them")
    return DeviceSelection(kind, index, found[index], extra_buffers)


def _load(lib: Ggml, folder: Path, kind: str) -> None:
    """Load the one library of a CPU code path, or another backend and the best CPU code path beside it."""
    libraries = backend_libraries(folder)
    wanted = [libraries[kind]] if kind in libraries else [p for k, p in libraries.items() if kind_of_file(k) == kind]
    if kind.partition("-")[0] != "cpu":
        wanted.append(best_cpu(libraries))
    for path in wanted:
        if not lib.ggml_backend_load(str(path).encode()):
            raise CollabError(f"{path} does not load on this machine")


def kind_of_file(stem: str) -> str:
    """The kind of a backend by its library's name; only ROCm's differs."""
    return {"hip": "rocm"}.get(stem, stem)


def best_cpu(libraries: dict[str, Path]) -> Path:
    """The CPU code path with the highest score of its own, as ggml_backend_load_all chooses."""
    scores = {path: _score(path) for stem, path in libraries.items() if stem.partition("-")[0] == "cpu"}
    if not scores or not max(scores.values()):
        raise CollabError("no CPU backend of llama.cpp runs on this machine")
    return max(scores, key=lambda path: scores[path])


def _score(path: Path) -> int:
    library = ctypes.CDLL(str(path))
    try:
        return int(library.ggml_backend_score())
    except AttributeError:
        return 1
