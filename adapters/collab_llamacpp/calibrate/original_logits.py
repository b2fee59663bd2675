"""The original that a model is compared with: running, or what `reference` wrote of it (`Reference`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.native.model import LoadedModel

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


class Original(Protocol):
    n_vocab: int

    def same_windows(self, windows: Sequence[I64]) -> bool: ...

    def logits(self, index: int) -> F32:
        """Logits f32[n, V] of the scored positions of window ``index``."""


class RunningOriginal:
    """A loaded model, run window by window."""

    def __init__(self, session: LoadedModel, windows: Sequence[I64]) -> None:
        self.session, self.windows, self.n_vocab = session, windows, session.n_vocab

    def same_windows(self, windows: Sequence[I64]) -> bool:
        return len(windows) == len(self.windows) and all(map(np.array_equal, windows, self.windows))

    def logits(self, index: int) -> F32:
        return self.session.scored(self.windows[index])
