"""How long `compress` takes with samples on DeepSeek-V3's widths.

    python -m benchmarks.scale.wide_repair [--type Q2_K] [--tokens 2048] [--scratch FOLDER]

A layer of V3's widths with two experts of random FP8, one of them kept, which gets all tokens. What is sampled are
random inputs and what both give. Of each kind of work one piece is timed, by one thread: hidden values and slopes; 585
rows of gate with feedback; the factors of all λ; 128 columns fitted with four fifths of the tokens and with all; 128
rows of `down` with feedback. Seconds are of the processor. Hours are computed: 58 layers of 192 experts with that many
tokens each, by the pieces that they have; cores that a stage has no piece for count as idle. Memory is the bound of
repair/repair_memory.py, with experts at 1.56 bits. Writes wide_repair.csv.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

from benchmarks.throughput.wide_folder import HIDDEN, WIDTH, write_wide
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.repair.feedback import Moments, fed_back
from collab_plugin.repair.fit_down import COLUMNS, JUDGED, RIDGES, Goal, LayerFit, Taken
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.repair_memory import RepairShape
from collab_plugin.repair.repaired_layer import ROW_VALUES
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import RoutedBlock

F32 = NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[2]
OTHER, KEPT, CTX, PIECES = 0, 1, 128, 3
V3_LAYERS, V3_KEPT, V3_USED, V3_BITS = 58, 192, 6, 1.56
RANK = 256
"""Of the inputs: those of models have a low one, with noise."""


@dataclass(frozen=True)
class Row:
    """Seconds of the processor for one kept expert with ``tokens``: ``upper``, gate and up with feedback; ``hidden``
    values; ``factors`` of all λ; ``judging`` them; ``fit`` of `down`; ``down`` with feedback. Bytes: the bound of a
    layer of V3 with 16 and with 64 threads."""

    type: str
    tokens: int
    upper: float
    hidden: float
    factors: float
    judging: float
    fit: float
    down: float
    hours_16: float
    hours_64: float
    bound_16: int
    bound_64: int


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--type", default="Q2_K")
    p.add_argument("--tokens", type=int, default=2048)
    p.add_argument("--scratch", type=Path)
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.scratch, prefix="collab-repair-") as name, one_blas_thread():
        row = measured(write_wide(Path(name) / "model", experts=2, heads=8), a.type, a.tokens)
    with (a.output / "wide_repair.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(asdict(row))
        writer.writerow(f"{v:.4g}" if isinstance(v, float) else v for v in asdict(row).values())
    print(row)


def measured(folder: Path, kind: str, tokens: int) -> Row:
    """Time one piece of each kind of work, of a matrix at ``kind``."""
    checkpoint = open_safetensors(folder)
    topology = topology_of(checkpoint)
    block = RoutedBlock(checkpoint, topology, topology.moe_layers[0])
    gate, down = block.matrices[0], block.down
    types = {n: TensorPlan(kind, tensor_bytes(kind, checkpoint.tensors[n].shape), None) for n in block.matrices}
    plan = copy_plan(checkpoint)
    rounding = Rounding(checkpoint, replace(plan, tensors={**plan.tensors, **types}), None, GgmlKernels())
    inputs = random_inputs(tokens)
    rounding.rounded(gate, KEPT, checkpoint.read(gate, expert=KEPT, rows=slice(0, 8)))  # tables are made, files open

    clock = Clock()
    slopes = block.slopes(inputs, KEPT)[gate]
    slope = clock.lap()
    rows = slice(0, ROW_VALUES // HIDDEN)
    costs = np.square(slopes[:, rows]).T
    moments = Moments(inputs, costs / costs.mean(1, keepdims=True))
    values = checkpoint.read(gate, expert=KEPT, rows=rows)
    rounding.stored(gate, KEPT, fed_back(values, moments, lambda target: rounding.rounded(gate, KEPT, target)))
    upper = slope + clock.lap() * 2 * WIDTH / rows.stop
    every = np.arange(tokens)
    taken = {KEPT: Taken(every, block.weighted_hidden(inputs, every, np.ones(tokens, np.float32), KEPT))}
    hidden = clock.lap()

    columns = slice(0, PIECES * COLUMNS)
    outputs = taken[KEPT].hidden @ checkpoint.read(down, expert=KEPT, rows=columns).T
    outputs += block.hidden(inputs, OTHER) @ checkpoint.read(down, expert=OTHER, rows=columns).T
    with ThreadPoolExecutor(1) as pool:
        goal = Goal.of(block, outputs, CTX, taken, pool)
        clock.lap()
        LayerFit(replace(goal, missing=goal.missing[:1], outputs=goal.outputs[:1]), taken, pool)
        one = clock.lap()
        fit = LayerFit(goal, taken, pool)
        judging = (clock.lap() - one) / (PIECES - 1)
    print(f"λ {fit.repair.ridge}, error of held-out tokens {fit.repair.before:.3f} to {fit.repair.after:.3f}")
    clock.lap()
    delta = fit.deltas(0)[KEPT]
    fitting = clock.lap()
    values = checkpoint.read(down, expert=KEPT, rows=slice(0, COLUMNS)) + delta
    moments = Moments(taken[KEPT].hidden)
    rounding.stored(down, KEPT, fed_back(values, moments, lambda target: rounding.rounded(down, KEPT, target)))
    back = clock.lap()
    pieces = HIDDEN // COLUMNS
    seconds = (upper, hidden, one - judging, judging * JUDGED, fitting * pieces, back * pieces)
    stored = int(V3_KEPT * 3 * HIDDEN * WIDTH * V3_BITS / 8)
    v3 = RepairShape(tokens * V3_KEPT // V3_USED, HIDDEN, WIDTH, V3_KEPT, V3_USED, 4 * tokens, stored)
    return Row(
        kind, tokens, *seconds, hours_16=hours(seconds, 16), hours_64=hours(seconds, 64), bound_16=v3.bound(16),
        bound_64=v3.bound(64),
    )  # fmt: skip


class Clock:
    """Seconds of the processor since the last lap."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def lap(self) -> float:
        """Begin the next one."""
        last, self._last = self._last, time.process_time()
        return self._last - last


def random_inputs(tokens: int) -> F32:
    """Of the size that a norm leaves, f32[n, d]."""
    random = np.random.default_rng(0)
    basis = random.standard_normal((RANK, HIDDEN)).astype(np.float32) / np.float32(RANK**0.5)
    inputs = random.standard_normal((tokens, RANK)).astype(np.float32) @ basis
    return np.asarray(inputs + 0.3 * random.standard_normal((tokens, HIDDEN)).astype(np.float32), np.float32)


def hours(seconds: tuple[float, float, float, float, float, float], cores: int) -> float:
    """Of V3, by the seconds of an expert: each stage takes as many rounds as its pieces need on so many cores."""

    def rounds(pieces: int) -> float:
        return -(-pieces // cores) / pieces

    upper, hidden, factors, judging, fit, down = seconds
    by_expert = (upper + hidden + factors) * rounds(V3_KEPT)
    by_column = judging * rounds(JUDGED * len(RIDGES)) + (fit + down) * rounds(HIDDEN // COLUMNS)
    return V3_LAYERS * V3_KEPT * (by_expert + by_column) / 3600


if __name__ == "__main__":
    main()
