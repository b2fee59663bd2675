"""GGUF files in a zip archive, unpacked for as long as the process runs."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from collab_plugin import Checkpoint, CheckpointFormat, CollabError, ModelFiles, open_gguf

# Held until the interpreter exits, which removes them: tensors are read from the unpacked files.
_unpacked: list[tempfile.TemporaryDirectory[str]] = []


def open_zipped(files: ModelFiles) -> Checkpoint:
    """Open the only ``.gguf`` member of an archive; its name in the archive is not used as a path."""
    assert files.named is not None
    path = files.fetch([files.named]) / files.named  # an archive on a hub or store comes here first
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
            if len(members) != 1:
                raise CollabError(f"{path} holds {len(members)} GGUF files; zip exactly one")
            folder = tempfile.TemporaryDirectory(prefix="collab-example-")
            _unpacked.append(folder)
            target = Path(folder.name) / f"{path.stem}.gguf"
            with archive.open(members[0]) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CollabError(f"{path} is a broken archive: {error}; pack it again") from None
    checkpoint = open_gguf(target)
    checkpoint.format = ZIPPED_GGUF.name
    checkpoint.notes = (*checkpoint.notes, f"unpacked from {path.name}")
    return checkpoint


def _matches(files: ModelFiles) -> bool:
    return files.named is not None and files.named.endswith(".zip")


ZIPPED_GGUF = CheckpointFormat("zipped-gguf", "GGUF files in a zip archive", _matches, open_zipped)
