"""A models folder of Ollama on this machine: hard links into it, its free space, what a dead server left.

Layout (manifest/paths.go): ``blobs/sha256-<hex>``, and temporary files beside them while a model is
created. Ollama opens the blobs by name only, so a hard link to a finished artifact serves as one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from collab_ollama.model.model_name import ModelName
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes

# Go's os.CreateTemp and MkdirTemp with the patterns "COPY", "sha256-" and "split-gguf-".
_TEMPORARY = re.compile(r"(COPY|sha256-|split-gguf-)\d+")


def models_folder(given: Path | None) -> Path:
    """Return ``given``, OLLAMA_MODELS, or ~/.ollama/models."""
    return given or Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")


@dataclass(frozen=True)
class Store:
    """``folder`` holds blobs/ and manifests/."""

    folder: Path

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def blob(self, digest: str) -> Path:
        """The file of "sha256:<hex>"."""
        return self.blobs / digest.replace(":", "-")

    def link(self, path: Path, digest: str) -> bool:
        """Hard-link ``path`` as a blob; False when that cannot be (other disk, other owner, no right).

        The server sets the blob's times, which only the owner may do: another user's file is no use.
        """
        try:
            if path.stat().st_uid != self.blobs.stat().st_uid:
                return False
            os.link(path.resolve(), self.blob(digest))
        except OSError:
            return False
        return True

    def is_link(self, path: Path, digest: str) -> bool:
        """True when the blob and ``path`` are one file."""
        try:
            return path.samefile(self.blob(digest))
        except OSError:
            return False

    def remove_unused(self, digests: Iterable[str]) -> None:
        """Remove those blobs that no model refers to; CollabError when the system refuses."""
        manifests = [path for path in (self.folder / "manifests").glob("*/*/*/*") if path.is_file()]
        used = "".join(path.read_text(errors="replace") for path in manifests)
        for digest in digests:
            if digest in used:
                continue
            try:
                self.blob(digest).unlink(missing_ok=True)
            except OSError as error:
                raise CollabError(f"cannot remove {self.blob(digest)}: {error.strerror}") from None

    def manifest(self, name: ModelName) -> Path:
        """The file that says what the model ``name`` is made of."""
        return self.folder / "manifests" / name.path

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file of the store, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)

    def remove_manifest(self, name: ModelName) -> None:
        """Remove the manifest and the folders that are then empty."""
        path = self.manifest(name)
        path.unlink(missing_ok=True)
        for folder in list(path.parents)[:3]:
            with suppress(OSError):
                folder.rmdir()

    def free(self) -> int:
        """Bytes free on the disk of the blobs."""
        return shutil.disk_usage(self.blobs if self.blobs.is_dir() else self.folder).free

    def temporary(self) -> frozenset[str]:
        """Names of the temporary files and folders of models being created."""
        try:
            return frozenset(path.name for path in self.blobs.iterdir() if _TEMPORARY.fullmatch(path.name))
        except OSError:
            return frozenset()

    def remove_temporary(self, before: frozenset[str]) -> None:
        """Remove what a server that died left since ``before`` was taken."""
        for name in self.temporary() - before:
            path = self.blobs / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
