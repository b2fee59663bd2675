"""What `Engine.reference` writes: an original's logits on windows of text, as numpy keeps arrays.

PATH holds uint16[windows, scored positions, vocabulary + 4], rows as packed_logits.py says, and PATH with
`.windows.npy` for its suffix the windows themselves, i64[windows, ctx].
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.compare_logits import scored_rows
from collab_plugin.engines.packed_logits import HEAD, Words, pack_logits, unpack_logits
from collab_plugin.errors import CollabError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class ReferenceWriter:
    """Takes the logits of windows; made by `writing_reference`."""

    def __init__(self, store: Words) -> None:
        self._store = store

    def add(self, index: int, logits: F32) -> None:
        """Keep the logits f32[scored positions, vocabulary] of window ``index``; CollabError when not finite."""
        if not np.isfinite(logits).all():
            raise CollabError("the original's logits are not finite: the file is damaged or was quantized too hard")
        self._store[index] = pack_logits(logits)


@contextmanager
def writing_reference(path: Path, windows: Sequence[I64], vocabulary: int) -> Iterator[ReferenceWriter]:
    """Yield what takes the logits of each window; the file is whole afterwards.

    CollabError when the disk has no room for it: writing to a mapped file would end the process then.
    """
    rows = scored_rows(len(windows[0]))
    shape = (len(windows), rows.stop - rows.start, HEAD + vocabulary)
    need, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if need > free:
        raise CollabError(
            f"the original's logits take {need:,} bytes in {path.parent}, where {free:,} are free; lower `chunks` or "
            "`ctx`, or give TMPDIR a larger disk"
        )
    store = np.lib.format.open_memmap(path, "w+", np.uint16, shape)
    yield ReferenceWriter(store)
    store.flush()
    np.save(windows_file(path), np.stack(windows))


class Reference:
    """A written reference, read window by window. ``n_vocab``: columns of its logits."""

    def __init__(self, path: Path) -> None:
        self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._rows.dtype != np.uint16 or self._rows.ndim != 3:
            raise CollabError(f"{path} is no reference of this version: make it again")
        self._windows = np.load(windows_file(path), allow_pickle=False)
        self.n_vocab = int(self._rows.shape[-1]) - HEAD

    def same_windows(self, windows: Sequence[I64]) -> bool:
        return np.array_equal(np.stack(windows), self._windows)

    def logits(self, index: int) -> F32:
        """Logits f32[scored positions, vocabulary] of window ``index``."""
        return unpack_logits(np.asarray(self._rows[index]))


def windows_file(path: Path) -> Path:
    """The file of the windows beside a reference."""
    return path.with_suffix(".windows.npy")
