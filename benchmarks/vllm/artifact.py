"""What experts at a GGUF's types cost and save in vLLM, beside the same experts unquantized.

    python -m benchmarks.vllm.artifact [--rounds 3] [--layers 4] [--types Q8_0,Q4_K,IQ3_S,IQ2_XXS]

Two tables. Dequantizing one expert matrix, by type: PyTorch operation after operation, and compiled, in turn. Then a
Qwen3-MoE with random bfloat16 weights served in full and from an artifact of each type, one process a measurement,
all ways in turn (A B A B). Prints the tables; writes results/vllm_dequantize.csv, vllm_artifact.csv and
vllm_artifact.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.vllm.load import HERE, child, measured, prepared, vllm_python, write_csv
from benchmarks.vllm.plot import BLACK, BLUE
from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.progress import untold
from collab_plugin.stats.stats import ImatrixEntry, Stats

WHOLE = "unquantized"
NEW = "16"
FIGURES = ("load_s", "peak_mb", "start_s", "tokens_s")


def one_type(checkpoint: Checkpoint, kind: str) -> Plan:
    """Every expert at ``kind``, the rest as stored."""
    plan = copy_plan(checkpoint)
    experts = {n: t for n, t in checkpoint.tensors.items() if t.role == Role.EXPERT}
    typed = {name: TensorPlan(kind, tensor_bytes(kind, info.shape), None) for name, info in experts.items()}
    plan = dataclasses.replace(plan, tensors={**plan.tensors, **typed})
    return dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)


def even_importance(tensors: Mapping[str, TensorInfo]) -> Stats:
    """All columns alike: the weights are random, and only speed is measured."""
    entries = {
        name: ImatrixEntry(np.ones((info.shape[0], info.shape[-1]), np.float32), np.ones(info.shape[0], np.float32))
        for name, info in tensors.items()
        if info.role == Role.EXPERT
    }
    return Stats({}, entries, 1, 1)


def artifact(model: Path, kind: str, folder: Path) -> dict[str, str]:
    """Options of the load format: a plan and what `compress` makes of it."""
    checkpoint = cp.open_checkpoint(model)
    plan, out = folder / f"{kind}.json", folder / f"{kind}.gguf"
    made = one_type(checkpoint, kind)
    cp.write_plan(plan, made)
    if not out.exists():
        stats = even_importance(checkpoint.tensors)
        compress(checkpoint, made, stats, out, kernels=GgmlKernels(), threads=2, report=untold)
    return {"plan": str(plan), "artifact": str(out)}


def show_matrices(times: Mapping[str, Mapping[str, float]], rows: int, columns: int) -> None:
    table = Table("type", "plain ms", "compiled ms", "plain / compiled", title=f"a matrix of {rows} x {columns}")
    for kind, each in times.items():
        ratio = each["plain"] / each["compiled"]
        table.add_row(kind, f"{each['plain']:.2f}", f"{each['compiled']:.2f}", f"{ratio:.2f}")
    Console(width=120).print(table)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("experts", "load s", "peak MB", "start s", "tokens/s", "share of unquantized", "rounds")
    middle = {
        way: [statistics.median(r[figure] for r in rows if r["way"] == way) for figure in FIGURES]
        for way in dict.fromkeys(r["way"] for r in rows)
    }
    for way, values in middle.items():
        share = values[-1] / middle[WHOLE][-1]
        count = sum(r["way"] == way for r in rows)
        table.add_row(way, *(f"{value:,.1f}" for value in values), f"{share:.2f}", str(count))
    Console(width=120).print(table)


def plot(times: Mapping[str, Mapping[str, float]], rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Left: a matrix by type, plain and compiled. Right: tokens a second by type, medians and extremes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2))
    for number, (way, colour) in enumerate((("plain", BLUE), ("compiled", BLACK))):
        places = [place + 0.4 * (number - 0.5) for place in range(len(times))]
        left.bar(places, [each[way] for each in times.values()], 0.38, color=colour, label=way)
    left.set_xticks(range(len(times)), times, rotation=60)
    left.set_title("dequantizing a matrix (ms)", fontsize=10)
    left.legend(frameon=False)
    ways = list(dict.fromkeys(r["way"] for r in rows))
    for place, way in enumerate(ways):
        values = [r["tokens_s"] for r in rows if r["way"] == way]
        middle = statistics.median(values)
        spread = [[middle - min(values)], [max(values) - middle]]
        right.bar(place, middle, 0.6, yerr=spread, color=BLUE if way == WHOLE else BLACK, ecolor="grey", capsize=2)
    right.set_xticks(range(len(ways)), ways)
    right.set_title("tokens a second", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--experts", type=int, default=64)
    p.add_argument("--expert-width", type=int, default=512)
    p.add_argument("--types", default="Q8_0,Q4_K,IQ3_S,IQ2_XXS")
    p.add_argument("--folder", type=Path, help="where models are made; by default a temporary folder")
    p.add_argument("--results", type=Path, default=HERE / "results")
    a = p.parse_args()
    python = vllm_python()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        site, model = prepared(python, folder, (a.layers, a.width, a.experts, a.expert_width))
        times = measured(child(python, site, "--dequantize", str(a.expert_width), str(a.width), "50"))
        show_matrices(times, a.expert_width, a.width)
        ways = {WHOLE: None} | {kind: artifact(model, kind, folder) for kind in a.types.split(",")}
        for number in range(a.rounds):
            for way, options in ways.items():
                print(f"round {number + 1} of {a.rounds}: {way}", file=sys.stderr, flush=True)
                given = [] if options is None else [json.dumps(options)]
                figures = measured(child(python, site, model, NEW, *given))
                rows.append({"way": way, "round": number + 1, **{figure: figures[figure] for figure in FIGURES}})
    show(rows)
    write_csv(a.results / "vllm_dequantize.csv", [{"type": kind, **each} for kind, each in times.items()])
    write_csv(a.results / "vllm_artifact.csv", rows)
    plot(times, rows, a.results / "vllm_artifact.png")


if __name__ == "__main__":
    main()
