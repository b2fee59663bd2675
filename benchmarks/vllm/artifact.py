"""What experts at a GGUF's types cost and save in vLLM on a processor, beside the same experts unquantized and beside
llama.cpp on the same file.

    python -m benchmarks.vllm.artifact [--rounds 3] [--layers 3] [--types Q8_0,Q4_K,IQ4_XS,IQ3_S,IQ2_XXS] [--matrices]
        [--processor-time]

A Qwen3-MoE with random bfloat16 weights served in full, and from an artifact of each type with ggml's kernels; for the
first type without them, too, as before they were used. One process a measurement, all ways in turn (A B A B), every
program on the processors that this one may run on. Prints a table; writes results/vllm_artifact.csv and
vllm_artifact.png. ``--matrices``: first, dequantizing one expert matrix in PyTorch, operation after operation, and
compiled, in turn; writes results/vllm_dequantize.csv. ``--processor-time``: decoding is timed by the processor time
that it takes, for a machine with other work; on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
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
from benchmarks.vllm.plot import BLACK, BLUE, ORANGE
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
FIGURES = ("load_s", "peak_mb", "start_s", "one_s", "all_s", "prompt_s")
SPEEDS = ("one_s", "all_s", "prompt_s")
LLAMA, OURS, PLAIN = "llama.cpp", "vLLM", "vLLM without ggml"


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


def middle(rows: Sequence[Mapping[str, Any]], engine: str, experts: str, figure: str) -> float | None:
    found = [r[figure] for r in rows if (r["engine"], r["experts"]) == (engine, experts) and r[figure] != ""]
    return statistics.median(found) if found else None


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        "engine", "experts", "load s", "peak MB", "start s", "1 request", "8 requests", "prompts",
        "of unquantized: 1", "8", "prompts", title="tokens a second",
    )  # fmt: skip
    for engine, experts in dict.fromkeys((r["engine"], r["experts"]) for r in rows):
        values = [middle(rows, engine, experts, figure) for figure in FIGURES]
        whole = [middle(rows, OURS, WHOLE, figure) for figure in SPEEDS]
        shares = [mine / its for mine, its in zip(values[-3:], whole, strict=True) if mine and its]
        table.add_row(
            engine, experts, *("" if v is None else f"{v:,.1f}" for v in values), *(f"{share:.2f}" for share in shares)
        )
    Console(width=140).print(table)


def plot(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """A panel a figure: tokens a second by type, medians and extremes; vLLM, and llama.cpp on the same file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    titles = ("1 request", "8 requests", "prompts")
    figure, axes = plt.subplots(1, len(SPEEDS), figsize=(5 * len(SPEEDS), 4.2))
    types = list(dict.fromkeys(r["experts"] for r in rows))
    for axis, speed, title in zip(axes, SPEEDS, titles, strict=True):
        for number, (engine, colour) in enumerate(((OURS, BLUE), (PLAIN, ORANGE), (LLAMA, BLACK))):
            for place, experts in enumerate(types):
                values = [r[speed] for r in rows if (r["engine"], r["experts"]) == (engine, experts)]
                if not values:
                    continue
                half = statistics.median(values)
                spread = [[half - min(values)], [max(values) - half]]
                axis.bar(place + 0.28 * (number - 1), half, 0.26, yerr=spread, color=colour, ecolor="grey", capsize=2)
        axis.axhline(middle(rows, OURS, WHOLE, speed), color="grey", linewidth=0.8, linestyle="dashed")
        axis.set_xticks(range(len(types)), types, rotation=30)
        axis.set_title(f"{title} (tokens a second)", fontsize=10)
    handles = [Patch(color=colour) for colour in (BLUE, ORANGE, BLACK)]
    figure.legend(handles, (OURS, PLAIN, LLAMA), loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(out, dpi=130)
    plt.close(figure)


def ggml_folder() -> str:
    """Of this Python's llama-cpp-python, for vLLM's."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "lib")


def llama_speed(path: str) -> dict[str, Any]:
    threads = str(len(os.sched_getaffinity(0)))
    command = [sys.executable, "-P", str(Path(__file__).with_name("llama_speed.py")), path, NEW, threads]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"llama.cpp: {done.stderr[-2000:]}")
    return measured(done.stdout)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--experts", type=int, default=64)
    p.add_argument("--expert-width", type=int, default=512)
    p.add_argument("--types", default="Q8_0,Q4_K,IQ4_XS,IQ3_S,IQ2_XXS")
    p.add_argument("--matrices", action="store_true")
    p.add_argument("--processor-time", action="store_true")
    p.add_argument("--folder", type=Path, help="where models are made; by default a temporary folder")
    p.add_argument("--results", type=Path, default=HERE / "results")
    a = p.parse_args()
    if a.processor_time:
        os.environ["BENCH_CLOCK"] = "processor"
    python = vllm_python()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        site, model = prepared(python, folder, (a.layers, a.width, a.experts, a.expert_width))
        if a.matrices:
            times = measured(child(python, site, "--dequantize", str(a.expert_width), str(a.width), "50"))
            show_matrices(times, a.expert_width, a.width)
            write_csv(a.results / "vllm_dequantize.csv", [{"type": kind, **each} for kind, each in times.items()])
        made = {kind: artifact(model, kind, folder) for kind in a.types.split(",")}
        first = next(iter(made))
        ways = [(OURS, WHOLE, None), *((OURS, kind, given) for kind, given in made.items())]
        ways += [(PLAIN, first, made[first]), *((LLAMA, kind, given) for kind, given in made.items())]
        for number in range(a.rounds):
            for engine, experts, options in ways:
                print(f"round {number + 1} of {a.rounds}: {engine}, {experts}", file=sys.stderr, flush=True)
                os.environ["COLLAB_GGML"] = "" if engine == PLAIN else ggml_folder()
                if engine == LLAMA and options is not None:
                    figures = llama_speed(options["artifact"])
                else:
                    given = [] if options is None else [json.dumps(options)]
                    figures = measured(child(python, site, model, NEW, *given))
                row = {"engine": engine, "experts": experts, "round": number + 1}
                rows.append({**row, **{figure: figures.get(figure, "") for figure in FIGURES}})
    show(rows)
    write_csv(a.results / "vllm_artifact.csv", rows)
    plot(rows, a.results / "vllm_artifact.png")


if __name__ == "__main__":
    main()
