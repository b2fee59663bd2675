"""DeepSeek-V3 and Kimi-K2 on paper: what is planned for their exact tensor tables, and what running it takes.

    python -m benchmarks.scale.deepseek_v3 [--data FOLDER] [--models deepseek-v3 kimi-k2] [-o benchmarks/results]

``--data``: the folder of DeepSeek-V3-0324's routing statistics (github.com/Bobchenyx/CC-MoE,
config_671B_expert_scores_seqlen_8k.json as deepseek-v3-0324-routing-8k.json); without it the routing is random and
the table says so. Weights and importance matrix are random numbers (imagined.py), so shares, bytes and memory mean
something here and predicted losses do not. Budgets are 103, 130 and 230 GB for DeepSeek-V3, and for Kimi-K2 those with
as many bits a weight. Each plan is made in a process of its own with an empty cache folder, for its time and memory.
Prints tables, writes deepseek_v3.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.scale.imagined import MODELS, Imagined, statistics
from collab_plugin.compression.peak_memory import peak_memory
from collab_plugin.placement.artifact_shape import shape_of_plan
from collab_plugin.placement.machine_fit import fit
from collab_plugin.placement.machines import machine_named
from collab_plugin.reports.sizes import bits_map

ROOT = Path(__file__).resolve().parents[2]
BUDGETS = {"deepseek-v3": ("103GB", "130GB", "230GB"), "kimi-k2": ("158GB", "199GB", "352GB")}
MACHINE = "strix-halo-128"
CONTEXTS = (8192, 32768)
ROLES = ("expert", "shared_expert", "attention", "ffn", "embedding", "output")


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan. ``bits``: bits per weight that stays, by role. ``cache``: bytes of KV cache by context. ``roof``:
    tokens a second at most, cache empty, on Strix Halo's 256 GB/s if all of it lay there. ``lost``: share of the
    calibration's selections that went to dropped experts. ``cpu_seconds``: of the processor, all threads."""

    model: str
    routing: str
    budget: str
    kept: int
    experts: int
    used: int
    bytes: int
    bpw: float
    bits: dict[str, float]
    cache: tuple[int, ...]
    roof: float
    lost: float
    seconds: float
    cpu_seconds: float
    peak: int


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    p.add_argument("--budgets", nargs="+", help="in place of each model's own three")
    p.add_argument("--data", type=Path, help="folder of the real routing statistics")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--one", nargs=3, metavar=("MODEL", "BUDGET", "STATS"), help=argparse.SUPPRESS)
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    if a.one:
        model, budget, stats = a.one
        print(json.dumps(dataclasses.asdict(_planned(model, budget, Path(stats), a.threads))))
        return
    if a.data is None:
        print("no --data: the routing is random numbers", file=sys.stderr)
    rows = [row for model in a.models for row in _rows(model, a.budgets or BUDGETS[model], a.data, a.threads)]
    a.output.mkdir(parents=True, exist_ok=True)
    _write(a.output / "deepseek_v3.csv", rows)
    Console(width=160).print(_table(rows))


def _rows(model: str, budgets: Sequence[str], data: Path | None, threads: int) -> list[Row]:
    routing = "random" if data is None else "of DeepSeek-V3-0324"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats.gguf"
        cp.write_stats(stats, statistics(Imagined(MODELS[model]), data))
        for budget in budgets:
            command = [sys.executable, "-m", "benchmarks.scale.deepseek_v3", "--threads", str(threads), "--one"]
            environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / budget)}  # no errors of plans before
            words = [str(word) for word in (*command, model, budget, stats)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, env=environment)
            if done.returncode:
                print(f"{model} at {budget}: no plan", file=sys.stderr)
                continue
            row = json.loads(done.stdout)
            found.append(Row(**row | {"routing": routing, "cache": tuple(row["cache"])}))
    return found


def _planned(model: str, budget: str, stats: Path, threads: int) -> Row:
    checkpoint = Imagined(MODELS[model])
    start, cpu = time.monotonic(), time.process_time()
    plan = cp.plan(checkpoint, stats=stats, budget=budget, experts_used="auto", threads=threads)
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    peak = peak_memory()
    shape, machine = shape_of_plan(plan, checkpoint.metadata), machine_named(MACHINE)
    fits = [fit(shape, machine, cp.RunSetup(context=context)) for context in CONTEXTS]
    roles = {bits.part: bits.bits_per_weight for bits in bits_map(plan).by_role}
    return Row(
        model,
        "",
        budget,
        plan.pruning.expert_count,
        checkpoint.model.experts,
        plan.activation.used,
        plan.bytes,
        plan.bits_per_weight,
        {role: roles[role] for role in ROLES if role in roles},
        tuple(found.memory.runtime[0].bytes or 0 for found in fits),
        fits[0].tokens_per_second[0],
        plan.pruning.mass_lost or 0.0,
        seconds,
        cpu,
        peak,
    )


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in dataclasses.fields(Row))
        for row in rows:
            writer.writerow(json.dumps(v) if isinstance(v, (dict, tuple)) else v for v in vars(row).values())


def _table(rows: list[Row]) -> Table:
    table = Table("model", "budget", "kept", "top-k", "bytes", "bpw", "bits by role", "KV 8k, 32k", "roof", "plan")
    for r in rows:
        bits = ", ".join(f"{role} {value:.2f}" for role, value in r.bits.items())
        cache = ", ".join(f"{size / 2**20:,.0f} MiB" for size in r.cache)
        table.add_row(
            r.model, r.budget, f"{r.kept} of {r.experts}", str(r.used), f"{r.bytes:,}", f"{r.bpw:.3f}", bits, cache,
            f"{r.roof:.1f} tokens/s", f"{r.seconds:.0f} s ({r.cpu_seconds:.0f} s of processor), {r.peak / 1e9:.2f} GB",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
