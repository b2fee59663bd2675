"""How `compress --cluster` grows with workers, and what a large cluster would take, on paper.

    python -m benchmarks.cluster.run [--workers 1 2 4] [--disk 25] [--scratch FOLDER]

Measured: two experts of DeepSeek-V3's widths from FP8 to Q8_0 on a local Ray cluster, where each worker's disk gives
``--disk`` megabytes a second (it sleeps that long). The cores are those of this machine, whatever the number of
workers, so that only waiting for the disk is shared. The clock runs from the call to the file; starting Ray comes
before it.
On paper: DeepSeek-V3 with 192 of 256 experts at the rates of benchmarks/results/throughput.csv on 8 machines of 64
cores, reading 5.1e11 bytes of FP8 from storage of 1, 5 and 20 GB/s: the longer of computing and reading.
Writes cluster.csv, prints tables.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.cluster.on_paper import on_paper
from benchmarks.throughput.run import read_runs, typed
from benchmarks.throughput.wide_folder import write_wide
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.progress import untold

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
KIND = "Q8_0"


@dataclasses.dataclass(frozen=True)
class Scaled:
    """``workers`` with disks of ``disk_mb_s`` each; ``speedup`` over the first row; ``same``: bytes of one machine."""

    workers: int
    disk_mb_s: float
    bytes_read: int
    seconds: float
    speedup: float
    same: bool


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workers", type=int, nargs="+", default=(1, 2, 4))
    p.add_argument("--disk", type=float, default=25.0, help="MB/s of each worker's disk")
    p.add_argument("--scratch", type=Path, help="folder for the files")
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.scratch, prefix="collab-cluster-") as name:
        rows = _measured(Path(name), a.workers, a.disk)
    a.output.mkdir(parents=True, exist_ok=True)
    with (a.output / "cluster.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in dataclasses.fields(Scaled))
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()] for row in rows)
    console = Console(width=120)
    console.print(_table(rows))
    if (rates := a.output / "throughput.csv").exists():
        head, lines = on_paper([run for run in read_runs(rates) if run.what == "types"])
        table = Table(*head, title="DeepSeek-V3, 192 of 256 experts: computed")
        for line in lines:
            table.add_row(*line)
        console.print(table)


def _measured(scratch: Path, workers: Sequence[int], disk: float) -> list[Scaled]:
    import ray
    from small_models import slow_disk

    # Workers have no tests in their path.
    ray.cloudpickle.register_pickle_by_value(slow_disk)
    folder = write_wide(scratch / "model", experts=2, heads=8)
    checkpoint = open_safetensors(folder)
    plan = typed(copy_plan(checkpoint), checkpoint.tensors.values(), KIND)
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    whole, out = scratch / "whole.gguf", scratch / "out.gguf"
    compress(checkpoint, plan, None, whole, kernels=first_kernels(), threads=1, report=untold)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rows: list[Scaled] = []
    for count in workers:
        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        cluster = RayCluster("local", partial(slow_disk.open_slow, folder, disk * 1e6), first_kernels, lambda: None)
        # A first run starts the workers' processes and opens the model there.
        compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold, cluster=cluster)
        out.unlink()
        start = time.monotonic()
        compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold, cluster=cluster)
        seconds = time.monotonic() - start
        ray.shutdown()
        same = out.read_bytes() == whole.read_bytes()
        out.unlink()
        rows.append(Scaled(count, disk, size, seconds, rows[0].seconds / seconds if rows else 1.0, same))
    return rows


def _table(rows: Sequence[Scaled]) -> Table:
    table = Table("workers", "disk of each", "read", "s", "speed-up", "same bytes")
    for r in rows:
        table.add_row(
            str(r.workers), f"{r.disk_mb_s:g} MB/s", f"{r.bytes_read / 1e6:,.0f} MB", f"{r.seconds:.1f}",
            f"{r.speedup:.2f}", "yes" if r.same else "NO",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
