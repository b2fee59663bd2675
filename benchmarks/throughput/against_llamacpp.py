"""Wall time against llama.cpp's own way, its converter to a BF16 GGUF and then llama-quantize, on the same input.

    python -m benchmarks.throughput.against_llamacpp --python PYTHON [--experts 8] [--rounds 2] [--scratch FOLDER]

The input is a layer of DeepSeek-V3's widths with few experts of random FP8 (wide_folder.py). ``--python``: one with
torch and transformers, for the converter. Runs take turns: ours with every expert, llama.cpp's, ours with 75 % of the
experts; each is a process of its own with one thread, its clock runs from its start to its end, and the source is in
the page cache for all. llama.cpp prunes no experts, so its run stands beside both of ours. At the end the tensors of
both files are compared byte by byte. Goals: 0.8 of llama.cpp's time at 100 %, 0.6 at 75 %. Writes
throughput_llamacpp.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.throughput.wide_folder import write_wide
from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.formats.ggml_types import fallback, tensor_bytes
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.plans.plan_file import write_plan

ROOT = Path(__file__).resolve().parents[2]
# Of experts, and of all else that is quantized.
TYPES = (("Q2_K", "Q4_K"), ("Q3_K", "Q6_K"), ("Q8_0", "Q8_0"))
KEEPS = (1.0, 0.75)
GOALS = {1.0: 0.8, 0.75: 0.6}
Spent = tuple[float, float]
"""Seconds of the clock and of the processor."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """One round: seconds of each step, of the clock and of the processor. ``convert_s`` and ``quantize_s`` are
    llama.cpp's, the same at both shares. ``ratio``: ours over both of theirs."""

    experts_type: str
    others_type: str
    keep: float
    round: int
    weights: int
    ours_s: float
    convert_s: float
    quantize_s: float
    ratio: float
    ours_cpu_s: float
    convert_cpu_s: float
    quantize_cpu_s: float
    cpu_ratio: float
    same_bytes: bool | None


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--python", required=True, help="a Python with torch and transformers")
    p.add_argument("--experts", type=int, default=8)
    p.add_argument("--heads", type=int, default=16)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--types", nargs="+", metavar="EXPERTS,OTHERS", default=[",".join(pair) for pair in TYPES])
    p.add_argument("--scratch", type=Path, help="folder for the files, on the disk that is meant")
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    rows: list[Timed] = []
    with tempfile.TemporaryDirectory(dir=a.scratch, prefix="collab-throughput-") as name:
        bench = Bench(Path(name), a.python, a.experts, a.heads)
        for pair in a.types:
            for number in range(a.rounds):
                experts, others = pair.split(",")
                rows += bench.round(experts, others, number)
    a.output.mkdir(parents=True, exist_ok=True)
    with (a.output / "throughput_llamacpp.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in dataclasses.fields(Timed))
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()] for row in rows)
    Console(width=150).print(_table(rows))


class Bench:
    """One folder, and the two ways from it to a quantized GGUF."""

    def __init__(self, scratch: Path, python: str, experts: int, heads: int) -> None:
        self.scratch, self.python = scratch, python
        self.folder = write_wide(scratch / "model", experts=experts, heads=heads)
        self.checkpoint = open_safetensors(self.folder)
        self.converter = _native("llama_converter.sh")
        self.tools = _native("llama_tools.sh")

    def round(self, experts: str, others: str, number: int) -> list[Timed]:
        whole = self._ours(experts, others, KEEPS[0])
        convert, quantize = self._theirs(experts, others)
        pruned = self._ours(experts, others, KEEPS[1])
        same = _same_tensors(self.scratch / "ours-1.0.gguf", self.scratch / "theirs.gguf")
        weights = sum(info.n_elements for info in self.checkpoint.tensors.values())
        for path in self.scratch.glob("*.gguf"):
            path.unlink()
        return [
            Timed(
                experts, others, keep, number, weights,
                ours[0], convert[0], quantize[0], ours[0] / (convert[0] + quantize[0]),
                ours[1], convert[1], quantize[1], ours[1] / (convert[1] + quantize[1]), equal,
            )
            for keep, ours, equal in ((KEEPS[0], whole, same), (KEEPS[1], pruned, None))
        ]  # fmt: skip

    def _ours(self, experts: str, others: str, keep: float) -> Spent:
        plan_path, out = self.scratch / "plan.json", self.scratch / f"ours-{keep}.gguf"
        write_plan(plan_path, _plan(self.checkpoint, experts, others, keep))
        command = ["-m", "collab_plugin", "compress", self.folder, "--plan", plan_path, "--threads", 1, "-o", out]
        return _seconds([sys.executable, *command])

    def _theirs(self, experts: str, others: str) -> tuple[Spent, Spent]:
        wide, out, kinds = (self.scratch / name for name in ("wide.gguf", "theirs.gguf", "types.txt"))
        job = Path(__file__).with_name("convert_job.py")
        convert = _seconds([self.python, job, self.converter, self.folder, wide])
        plan = _plan(self.checkpoint, experts, others, 1.0)
        kinds.write_text("\n".join(f"^{re.escape(name)}$={t.type}" for name, t in plan.tensors.items()))
        ends = {name: plan.tensors[f"{name}.weight"].type for name in ("output", "token_embd")}
        quantize = _seconds(
            [self.tools / "llama-quantize", "--tensor-type-file", kinds, "--output-tensor-type", ends["output"],
             "--token-embedding-type", ends["token_embd"], wide, out, others, 1]
        )  # fmt: skip
        return convert, quantize


def _plan(checkpoint: Checkpoint, experts: str, others: str, keep: float) -> Plan:
    def planned(info: TensorInfo) -> TensorPlan:
        wanted = experts if info.role == Role.EXPERT else others
        kind = fallback(wanted, info.shape[-1]) if quantizable(info) else info.type.name
        return TensorPlan(kind, tensor_bytes(kind, info.shape), None)

    plan = copy_plan(checkpoint)
    plan = dataclasses.replace(plan, tensors={name: planned(info) for name, info in checkpoint.tensors.items()})
    if keep < 1:
        count = round(plan.pruning.expert_count * keep)
        kept = {
            i.layer: tuple(range(count)) for i in checkpoint.tensors.values() if i.by_expert and i.layer is not None
        }
        pruning = dataclasses.replace(plan.pruning, criterion="given", expert_count=count, kept=kept)
        metadata = {f"{checkpoint.architecture}.expert_count": count}
        activation = dataclasses.replace(plan.activation, used=min(count, plan.activation.used))
        plan = dataclasses.replace(plan, pruning=pruning, metadata=metadata, activation=activation)
    return dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)


def _native(script: str) -> Path:
    command = [str(ROOT / "tests" / "native" / script), sys.executable, _binding(), "--no-build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return Path(done.stdout.strip())


def _binding() -> str:
    from importlib.metadata import version

    return version("llama-cpp-python")


def _seconds(command: Sequence[object]) -> Spent:
    """Of a process with one thread, from its start to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _same_tensors(ours: Path, theirs: Path) -> bool:
    a, b = open_gguf(ours), open_gguf(theirs)
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[name].type == b.tensors[name].type and np.array_equal(a.read_raw(name), b.read_raw(name))
        for name in a.tensors
    )


def _table(rows: Sequence[Timed]) -> Table:
    figures = ("ours s", "converter s", "llama-quantize s", "ratio", "of the processor", "goal", "same bytes")
    table = Table("experts, others", "kept", *figures)
    for key in dict.fromkeys((r.experts_type, r.others_type, r.keep) for r in rows):
        found = [r for r in rows if (r.experts_type, r.others_type, r.keep) == key]
        ratio, goal = statistics.median(r.ratio for r in found), GOALS[key[2]]
        cpu = statistics.median(r.cpu_ratio for r in found)
        columns = [" ".join(f"{getattr(r, f):.1f}" for r in found) for f in ("ours_s", "convert_s", "quantize_s")]
        same = "" if found[0].same_bytes is None else "yes" if all(r.same_bytes for r in found) else "NO"
        verdict = f"{goal} {'met' if ratio <= goal else 'FAILS'}"
        table.add_row(f"{key[0]}, {key[1]}", f"{key[2]:.0%}", *columns, f"{ratio:.2f}", f"{cpu:.2f}", verdict, same)
    return table


if __name__ == "__main__":
    main()
