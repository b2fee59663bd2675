"""Is harm proportional to error? KL divergence over relative error, one group of tensors and type at a time.

    python -m benchmarks.sensitivity.linearity [MODEL] [--chunks 4]

Every part of the model at three depths is quantized alone to four types, everything else as stored, and
compared with the original on the calibration text. Prints a table: nats per unit of relative error.
Where a type needs an importance vector that the tensor lacks, the next larger type stands in.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, Bench
from benchmarks.sensitivity.scratch_copy import Scratch
from collab_plugin.planning.measure.groups import coarse
from collab_plugin.planning.type_choices import possible
from collab_plugin.progress import untold
from collab_plugin.quantize.error import ErrorTable

TYPES = ("Q4_K", "IQ3_XXS", "IQ2_XXS", "IQ1_S")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, nargs="?", default=ROOT / "tests" / "models" / "tiny-qwen3moe")
    p.add_argument("--chunks", type=int, default=4)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    a = p.parse_args()
    bench = Bench(a.model, a.work / a.model.name, a.chunks, a.threads)
    reference = bench.work / "linearity.npy"
    cp.reference(bench.original, reference, texts=bench.calibration, chunks=a.chunks, threads=a.threads)
    planning = bench.planning(None)
    scratch = Scratch(bench.checkpoint, planning.imatrix, bench.kernels, bench.work, a.threads)
    table = ErrorTable(bench.checkpoint, {}, planning.imatrix, bench.kernels, a.threads, untold)
    print("| group | " + " | ".join(TYPES) + " |\n|---|" + "---|" * len(TYPES))
    for group in coarse(bench.checkpoint):
        cells = []
        for kind in TYPES:
            types = {n: possible(planning, bench.checkpoint.tensors[n], kind) for n in group.tensors}
            errors = table.measure({n: (k,) for n, k in types.items()})
            with scratch.quantized(types) as path:
                result = cp.evaluate(
                    path, against=reference, texts=bench.calibration, chunks=a.chunks, threads=a.threads
                )
            ratio = result.mean_kld / sum(errors[n][k] for n, k in types.items())
            cells.append(f"{ratio:.3f}" + ("" if set(types.values()) == {kind} else " *"))
        print(f"| {group.part}, {group.tensors[0].removesuffix('.weight')} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
