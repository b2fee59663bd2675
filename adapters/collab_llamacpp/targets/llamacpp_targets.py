"""llama.cpp's targets: every device and CPU code path of the builds that are here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from collab_llamacpp.native.libraries import installed_folder, library_folder
from collab_llamacpp.targets.builds import Build, backend_libraries, builds
from collab_llamacpp.targets.ggml_devices import Listed, Listing, list_devices
from collab_llamacpp.targets.selection import NO_REPACK, DeviceSelection, kind_of_file, select
from collab_plugin import CollabError, KernelBench, LoadOptions, Session, Target, TargetInfo, TargetProvider

ENGINE = "llamacpp"
# Kinds to speak of also where nothing has them, by what users call them.
_KINDS = {"blas": "BLAS", "cuda": "CUDA", "metal": "Metal", "rocm": "ROCm", "sycl": "SYCL", "vulkan": "Vulkan"}


@dataclass(frozen=True)
class _Found:
    info: TargetInfo
    build: Build | None


class LlamaCppTargets(TargetProvider):
    """Targets "llamacpp:cpu", "llamacpp:cpu-norepack", "llamacpp:cpu-haswell", "llamacpp:vulkan:0"."""

    name = ENGINE

    def __init__(self) -> None:
        self._found: dict[str, _Found] | None = None

    def find(self) -> tuple[TargetInfo, ...]:
        return tuple(found.info for found in self._all().values())

    def open(self, name: str) -> Target:
        return LlamaCppTarget(name.removeprefix(f"{ENGINE}:"))

    def environment(self, name: str) -> Mapping[str, str]:
        found = self._all().get(name)
        build = found.build if found else None
        return {"GGML_NO_BACKTRACE": "1", **(build.environment() if build else {})}

    def _all(self) -> dict[str, _Found]:
        if self._found is None:
            self._found = dict(sorted(_search().items()))
        return self._found


class LlamaCppTarget(Target):
    """A device by the part of its target's name after the engine. Imports llama_cpp on first use."""

    places = True

    def __init__(self, device: str) -> None:
        self._device = device

    def load(self, artifact: Path, options: LoadOptions) -> AbstractContextManager[Session]:
        try:
            from collab_llamacpp.targets.llamacpp_session import load
        except (AttributeError, RuntimeError) as error:  # a function or library that the binding misses
            raise CollabError(f"{library_folder()} holds no llama.cpp that llama-cpp-python binds: {error}") from None
        return load(self._select(), artifact, options)

    def kernels(self) -> AbstractContextManager[KernelBench]:
        from collab_llamacpp.native.ggml import ggml
        from collab_llamacpp.targets.ggml_bench import open_bench

        return open_bench(ggml(), self._select())

    def _select(self) -> DeviceSelection:
        from collab_llamacpp.native.ggml import ggml

        return select(ggml(), library_folder(), self._device)


def _search() -> dict[str, _Found]:
    """Targets by name; of two builds that have one, the first."""
    try:
        installed_folder()
    except CollabError as error:
        return {f"{ENGINE}:cpu": _absent("cpu", str(error), "")}
    found: dict[str, _Found] = {}
    for build in builds():
        for target in _of_build(build):
            before = found.get(target.info.name)
            if before is None or (before.info.absent and not target.info.absent):
                found[target.info.name] = target
    kinds = {name.removeprefix(f"{ENGINE}:").partition(":")[0] for name in found}
    for kind in _KINDS.keys() - kinds:
        target = _absent(kind, _lack(kind), "")
        found[target.info.name] = target
    return found


def _of_build(build: Build) -> Iterator[_Found]:
    try:
        listing = list_devices(build)
    except CollabError as error:
        yield _absent("cpu", str(error), str(build.folder))
        return
    if listing.kinds:
        yield from _of_listing(build, listing, "cpu")
        return
    for stem, path in backend_libraries(build.folder).items():
        kind = kind_of_file(stem)
        try:
            listing = list_devices(build, path)
        except CollabError as error:
            yield _absent(kind, str(error), str(build.folder))
            continue
        if not listing.refused:
            yield from _of_listing(build, listing, stem)
        elif kind.startswith("cpu"):
            yield _absent(kind, f"this processor lacks instructions that {path.name} was built for", str(build.folder))
        else:
            yield _absent(kind, f"{path.name} does not load: {listing.refused}", str(build.folder))


def _of_listing(build: Build, listing: Listing, code_path: str) -> Iterator[_Found]:
    """``code_path``: what the CPU's target is called."""
    for listed in listing.devices:
        if listed.kind == "cpu":
            yield _present(build, listing, listed, code_path)
            if code_path == "cpu":
                yield _present(build, listing, listed, code_path + NO_REPACK)
        else:
            yield _present(build, listing, listed, "blas" if listed.kind == "blas" else f"{listed.kind}:{listed.index}")
    for kind in set(listing.kinds) & _KINDS.keys() - {listed.kind for listed in listing.devices}:
        yield _absent(kind, f"llama.cpp's {_KINDS[kind]} backend finds no device", build.describe(listing.version))


def _present(build: Build, listing: Listing, listed: Listed, device: str) -> _Found:
    versions = {"llama-cpp-python": version("llama-cpp-python"), "ggml": listing.version}
    if listed.features:
        versions["built for"] = " ".join(listed.features)
    software = "software" in listed.device.driver
    info = TargetInfo(
        f"{ENGINE}:{device}",
        ENGINE,
        build.describe(listing.version),
        listed.device,
        versions=versions,
        slow="a software driver compiles shaders for minutes" if software else "",
    )
    return _Found(info, build)


def _absent(kind: str, reason: str, build: str) -> _Found:
    device = kind if kind == "blas" or kind.startswith("cpu") else f"{kind}:0"
    return _Found(TargetInfo(f"{ENGINE}:{device}", ENGINE, build, None, absent=reason), None)


def _lack(kind: str) -> str:
    if kind == "metal" and sys.platform != "darwin":
        return "no Metal: this is not macOS"
    return f"this llama.cpp was built without {_KINDS[kind]}"
