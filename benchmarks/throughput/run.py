"""How fast is `compress` on DeepSeek-V3's widths, where does the time go, and how long would the whole model take?

    python -m benchmarks.throughput.run types [--types Q8_0 Q2_K IQ2_XXS] [--threads 1]
    python -m benchmarks.throughput.run layer [--type Q3_K] [--experts 256] [--scratch FOLDER]

``types`` compresses two experts and the shared one of a real-width layer at each type (of slow types their gates);
``layer`` a whole layer with all its 256 experts of random FP8, 11.5 GB (wide_folder.py; the files are deleted at the
end). The clock of ``layer`` starts when its plan is read and the kernels' tables are made, and ends when the file has
its name, on the disk; of ``types`` the tiles of the type alone count, because what is copied is much of so small a
model. "kernel share" is the part of all threads' time that is spent in ggml's own quantization kernel: 100 % is the
kernel's rate times the threads.
Hours are computed: the weights of DeepSeek-V3 that a plan keeps (75 % of the experts), by the processor's seconds a
weight. Writes throughput.csv (rows of the same kind are replaced) and throughput.png, prints a table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale.imagined import DEEPSEEK_V3, shapes
from benchmarks.throughput.plot import plot
from benchmarks.throughput.stage_times import STAGES
from benchmarks.throughput.wide_folder import write_wide
from collab_plugin.checkpoint.checkpoint import TensorInfo, quantizable
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.formats.ggml_types import TYPES, tensor_bytes
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.plans.plan_file import write_plan

ROOT = Path(__file__).resolve().parents[2]
FAST = ("Q8_0", "Q6_K", "Q4_K", "Q3_K", "Q2_K")
SLOW = ("IQ4_XS", "IQ3_XXS", "IQ2_S", "IQ2_XXS", "IQ1_M", "IQ1_S")
CORES = (16, 64)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run. ``read`` to ``rest``: seconds of the processor by stage, over all threads, of the tensors at ``type``;
    ``read_mb_s``, ``written_mb_s``: of all files, by the clock."""

    what: str
    type: str
    imatrix: bool
    experts: int
    threads: int
    weights: int
    seconds: float
    weights_s: float
    read_mb_s: float
    written_mb_s: float
    kernel_share: float
    peak_mib: int
    read: float
    decode: float
    quantize: float
    checksum: float
    write: float
    rest: float
    hours_16: float
    hours_64: float

    @property
    def core_weights_s(self) -> float:
        """Weights a second of the processor: the rate of a core that nobody else uses."""
        seconds: float = sum(getattr(self, stage) for stage in STAGES)
        return self.weights / seconds


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("types", "layer"))
    p.add_argument("--types", nargs="+", default=(*FAST, *SLOW))
    p.add_argument("--type", default="Q3_K")
    p.add_argument("--experts", type=int, default=256)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--scratch", type=Path, help="folder for the files, on the disk that is meant")
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.scratch, prefix="collab-throughput-") as name:
        scratch = Path(name)
        if a.what == "types":
            folder = write_wide(scratch / "model", experts=2, heads=8)
            rows = [_run(a.what, folder, kind, 2, a.threads) for kind in a.types]
        else:
            folder = write_wide(scratch / "model", experts=a.experts)
            rows = [_run(a.what, folder, a.type, a.experts, a.threads)]
    rows = list(_merged(a.output / "throughput.csv", rows))
    _write(a.output / "throughput.csv", rows)
    plot(rows, a.output / "throughput.png")
    Console(width=170).print(_table(rows))


def _run(what: str, folder: Path, kind: str, experts: int, threads: int) -> Run:
    """The routed and the shared experts at ``kind``, with an importance matrix where the type wants one."""
    checkpoint = open_safetensors(folder)
    plan = typed(copy_plan(checkpoint), checkpoint.tensors.values(), kind)
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    weights = sum(i.n_elements for i in checkpoint.tensors.values() if plan.tensors[i.name].type == kind)
    source = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    write_plan(folder / "plan.json", plan)
    out = folder.parent / "out.gguf"
    imatrix = TYPES[kind].wants_imatrix
    command = [sys.executable, "-m", "benchmarks.throughput.stage_times", folder, folder / "plan.json", out]
    done = subprocess.run(
        [*map(str, command), str(threads), str(int(imatrix)), kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    out.unlink()
    found = json.loads(done.stdout)
    in_tiles = sum(found["wall"].values()) / threads
    seconds = found["seconds"] if what == "layer" else in_tiles
    rate = weights / seconds
    hours = [v3_weights() / weights * sum(found["cpu"].values()) / cores / 3600 for cores in CORES]
    return Run(
        what, kind, imatrix, experts, threads, weights, seconds, rate, source / found["seconds"] / 1e6,
        found["bytes"] / found["seconds"] / 1e6, found["wall"]["quantize"] / seconds / threads,
        found["peak_memory"] // 2**20,
        *(found["cpu"].get(stage, 0.0) for stage in STAGES), *hours,
    )  # fmt: skip


def typed(plan: Plan, infos: Iterable[TensorInfo], kind: str) -> Plan:
    """Experts at ``kind``, of slow types the gates alone; all else as it is stored."""
    experts = [i for i in infos if quantizable(i) and i.role in (Role.EXPERT, Role.SHARED_EXPERT)]
    if kind in SLOW:
        experts = [i for i in experts if "gate_exps" in i.name]
    changed = {i.name: TensorPlan(kind, tensor_bytes(kind, i.shape), None) for i in experts}
    return dataclasses.replace(plan, tensors={**plan.tensors, **changed})


def v3_weights() -> int:
    """Weights of DeepSeek-V3 with 192 of 256 experts in each layer."""
    total = 0
    for name, shape in shapes(DEEPSEEK_V3).items():
        size = 1
        for n in shape:
            size *= n
        total += size * 3 // 4 if "_exps" in name else size
    return total


def _merged(path: Path, rows: Sequence[Run]) -> Iterator[Run]:
    """What is there already of other kinds, and ``rows``."""
    new = {(row.what, row.type, row.experts, row.threads) for row in rows}
    for row in read_runs(path) if path.exists() else []:
        if (row.what, row.type, row.experts, row.threads) not in new:
            yield row
    yield from rows


def read_runs(path: Path) -> list[Run]:
    """The rows of throughput.csv."""
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": "True".__eq__}
    with path.open(newline="") as file:
        return [
            Run(**{f.name: kinds[str(f.type)](row[f.name]) for f in dataclasses.fields(Run)})
            for row in csv.DictReader(file)
        ]


def _write(path: Path, rows: Sequence[Run]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in dataclasses.fields(Run))
        for row in rows:
            writer.writerow(f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values())


def _table(rows: Sequence[Run]) -> Table:
    table = Table("what", "type", "threads", "weights", "s", "Mweights/s", "MB/s read", "MB/s written", "kernel share",
                  "peak MiB", f"ns a weight: {', '.join(STAGES)}", "hours on 16, 64")  # fmt: skip
    for r in rows:
        stages = ", ".join(f"{getattr(r, stage) / r.weights * 1e9:.2f}" for stage in STAGES)
        table.add_row(
            f"{r.what}, {r.experts} experts", r.type + (", imatrix" if r.imatrix else ""), str(r.threads),
            f"{r.weights / 1e6:,.0f} M", f"{r.seconds:.1f}", f"{r.weights_s / 1e6:.2f}", f"{r.read_mb_s:.1f}",
            f"{r.written_mb_s:.1f}", f"{r.kernel_share:.1%}", f"{r.peak_mib:,}", stages,
            f"{r.hours_16:.2f}, {r.hours_64:.2f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
