"""What repairing one layer holds in memory at most."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.repair.feedback import MOST_TOKENS
from collab_plugin.repair.fit_down import RIDGES, pieces_of
from collab_plugin.repair.repaired_layer import ROW_VALUES
from collab_plugin.repair.routed_block import TOKEN_VALUES


@dataclass(frozen=True)
class RepairShape:
    """A layer of ``kept`` experts with ``hidden`` values each and ``width`` columns in and out; ``tokens`` were sampled
    and take ``used`` experts each, of which the ``busiest`` gets so many. ``stored``: bytes of the experts in the
    file."""

    tokens: int
    width: int
    hidden: int
    kept: int
    used: int
    busiest: int
    stored: int

    @property
    def shared(self) -> int:
        """Bytes that all threads share: the sample, hidden values of all tokens, factors, and the file's experts."""
        small = min(self.hidden, self.busiest)
        return (
            8 * self.tokens * self.width
            + 4 * self.used * self.tokens * self.hidden
            + len(RIDGES) * 4 * self.kept * small * (small + 1)
            + self.stored
        )

    @property
    def of_a_thread(self) -> int:
        """Bytes that each thread takes beside: of its largest piece of work."""
        matrix, seen = self.hidden * self.width, min(self.busiest, MOST_TOKENS)
        rows = min(matrix, ROW_VALUES)
        feedback = (
            8 * matrix + 4 * seen * (6 * self.hidden + self.width) + 4 * (10 * rows + 3 * seen * rows // self.width)
        )
        values = min(self.busiest * self.width, TOKEN_VALUES)
        hidden = 8 * matrix + 4 * (values + 4 * values // self.width * self.hidden)
        columns = int(pieces_of(self.width)[0].stop)
        deltas = 4 * self.kept * columns * self.hidden
        fit = deltas + 12 * self.tokens * columns + 4 * self.busiest * self.hidden + 40 * self.hidden**2
        down = deltas + 4 * seen * self.hidden + 4 * columns * (10 * self.hidden + 3 * seen)
        return max(feedback, hidden, fit, down)

    def bound(self, threads: int) -> int:
        """Bytes at most, beside what the process takes without it: with what BLAS and allocators hold."""
        return 2**26 + self.shared + threads * self.of_a_thread
