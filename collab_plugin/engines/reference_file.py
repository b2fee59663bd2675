"""What `Engine.reference` writes: an original's logits on windows of text, as numpy keeps arrays.

PATH holds f32[windows, scored positions, vocabulary], and PATH with `.windows.npy` for its suffix the windows
themselves, i64[windows, ctx].
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.compare_logits import scored_rows
from collab_plugin.errors import CollabError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@contextmanager
def writing_reference(path: Path, windows: Sequence[I64], vocabulary: int) -> Iterator[F32]:
    """Yield the array to fill, f32[windows, scored positions, vocabulary], on the disk; it is whole afterwards.

    CollabError when the disk has no room for it: writing to a mapped file would end the process then.
    """
    rows = scored_rows(len(windows[0]))
    shape = (len(windows), rows.stop - rows.start, vocabulary)
    need, free = 4 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if need > free:
        raise CollabError(
            f"the original's logits take {need:,} bytes in {path.parent}, where {free:,} are free; lower `chunks` or "
            "`ctx`, or give TMPDIR a larger disk"
        )
    store = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    yield store
    store.flush()
    np.save(windows_file(path), np.stack(windows))


class Reference:
    """A written reference, read window by window. ``n_vocab``: columns of its logits."""

    def __init__(self, path: Path) -> None:
        self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        self._windows = np.load(windows_file(path), allow_pickle=False)
        self.n_vocab = int(self._rows.shape[-1])

    def same_windows(self, windows: Sequence[I64]) -> bool:
        return np.array_equal(np.stack(windows), self._windows)

    def logits(self, index: int) -> F32:
        """Logits f32[scored positions, vocabulary] of window ``index``."""
        return np.asarray(self._rows[index])


def windows_file(path: Path) -> Path:
    """The file of the windows beside a reference."""
    return path.with_suffix(".windows.npy")
