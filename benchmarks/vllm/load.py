"""What pruning while vLLM loads costs and saves, beside vLLM's own loader.

    python -m benchmarks.vllm.load [--rounds 3] [--layers 8] [--width 768] [--experts 64] [--expert-width 512]

A Qwen3-MoE with random bfloat16 weights (1.2 GB at the defaults) and plans that keep 100, 75 and 50 % of its
experts. Three ways: vLLM's own loader on the whole model, the same on the checkpoint that `compress --format
safetensors` made of a plan, and load format collab on the whole model with that plan. One process a measurement;
rounds go through all ways in turn (A B A B), so that a change of the machine's speed hits all of them. Prints a
table of medians; writes results/vllm.csv and results/vllm.png.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.vllm.plot import plot
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan

HERE = Path(__file__).parents[1]
ROOT = HERE.parent
MODELS = ROOT / "tests" / "models"
KEEP = (1.0, 0.75, 0.5)
WHOLE, PRUNED, OURS = "vLLM, whole model", "vLLM, pruned checkpoint", "collab, whole model"
NEW = "64"
FIGURES = ("load_s", "asked_mb", "disk_mb", "peak_mb", "start_s", "tokens_s")


@dataclass(frozen=True)
class Row:
    """One measurement.

    ``load_s``: of the loader, reading and vLLM's own packing. ``asked_mb``: tensors and rows that were read until
    then, ``disk_mb``: what storage gave for it, with what the kernel read ahead and modules that were imported.
    ``peak_mb``: resident memory of loading, on top of what was there. ``start_s``: the whole LLM(...).
    """

    way: str
    keep: float
    round: int
    load_s: float
    asked_mb: float
    disk_mb: float
    peak_mb: float
    start_s: float
    tokens_s: float


def plans(model: Path, folder: Path) -> dict[float, Path]:
    """A plan a share: every 1/share-th expert stays, types as stored, as many experts a token as before."""
    checkpoint = cp.open_checkpoint(model)
    whole = copy_plan(checkpoint)
    layers = sorted({t.layer for t in checkpoint.tensors.values() if t.by_expert and t.layer is not None})
    found = {}
    for keep in KEEP:
        count = round(whole.pruning.expert_count * keep)
        # So that kept and dropped lie mixed in the files.
        ids = tuple(int(i / keep) for i in range(count))
        pruning = dataclasses.replace(
            whole.pruning, criterion="given", expert_count=count, kept=dict.fromkeys(layers, ids)
        )
        plan = dataclasses.replace(
            whole, pruning=pruning, metadata={f"{checkpoint.architecture}.expert_count": count} if keep < 1 else {}
        )
        plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
        found[keep] = folder / f"plan-{count}.json"
        cp.write_plan(found[keep], plan)
    return found


def pruned_checkpoint(model: Path, plan: Path) -> Path:
    out = plan.with_suffix("")
    cp.compress(model, plan, out, format="safetensors")
    return out


def prepared(python: Path, folder: Path, sizes: Sequence[int]) -> tuple[Path, Path]:
    """A folder with this checkout installed, and a model of random weights: layers, width, experts, expert width."""
    site, model = installed(folder), folder / "model"
    if not model.exists():
        child(python, site, "--make", model, MODELS / "tiny-qwen3moe", *map(str, sizes))
    return site, model


def installed(folder: Path) -> Path:
    """A new folder in ``folder`` with this checkout installed."""
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--upgrade", "--target", site, ROOT], check=True)
    return site


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def vllm_python() -> Path:
    script = ROOT / "tests" / "native" / "vllm_env.sh"
    done = subprocess.run([script, sys.executable], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def child(python: Path, site: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [python, "-P", Path(__file__).with_name("measure.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr[-2000:]}")
    return done.stdout


def measured(output: str) -> dict[str, Any]:
    line = next(line for line in output.splitlines() if line.startswith("MEASURED "))
    figures: dict[str, Any] = json.loads(line.removeprefix("MEASURED "))
    return figures


def show(rows: Sequence[Row]) -> None:
    table = Table("way", "keep", "load s", "read MB", "from disk MB", "peak MB", "start s", "tokens/s", "rounds")
    for way, keep in dict.fromkeys((r.way, r.keep) for r in rows):
        these = [r for r in rows if (r.way, r.keep) == (way, keep)]
        middle = [statistics.median(getattr(r, figure) for r in these) for figure in FIGURES]
        table.add_row(way, f"{keep:.0%}", *(f"{value:,.1f}" for value in middle), str(len(these)))
    Console(width=120).print(table)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--experts", type=int, default=64)
    p.add_argument("--expert-width", type=int, default=512)
    p.add_argument("--folder", type=Path, help="where models are made; by default a temporary folder")
    p.add_argument("--results", type=Path, default=HERE / "results")
    a = p.parse_args()
    python = vllm_python()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        site, model = prepared(python, folder, (a.layers, a.width, a.experts, a.expert_width))
        made = plans(model, folder)
        ways: list[tuple[str, float, Path, Path | None]] = [(WHOLE, 1.0, model, None)]
        for keep, plan in made.items():
            ways += [(PRUNED, keep, pruned_checkpoint(model, plan), None), (OURS, keep, model, plan)]
        for number in range(a.rounds):
            for way, keep, path, given in ways:
                print(f"round {number + 1} of {a.rounds}: {way}, {keep:.0%}", file=sys.stderr, flush=True)
                options = [] if given is None else [json.dumps({"plan": str(given)})]
                rows.append(Row(way, keep, number + 1, **measured(child(python, site, path, NEW, *options))))
    show(rows)
    write_csv(a.results / "vllm.csv", [dataclasses.asdict(r) for r in rows])
    plot(rows, a.results / "vllm.png")


if __name__ == "__main__":
    main()
