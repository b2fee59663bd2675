"""The rivals of benchmarks/quality/run.py, each at the same bytes as ours or more."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import collab_plugin as cp
from benchmarks.quality.bench import Bench, Row
from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.checkpoint.gguf import open_shard
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.pruning import parse_keep
from collab_plugin.planning.type_choices import possible
from collab_plugin.stats.stats import ImatrixEntry, Stats

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S",
           "IQ3_M", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")  # fmt: skip
# The release's ladder: one type up at the ends, one down in the middle (docs/sources.md, Release).
LADDER = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q5_K", "Q6_K")
REAP_KEEP = "75%"


@cache
def tool(name: str) -> Path:
    script = ROOT / "tests" / "native" / "llama_tools.sh"
    folder = subprocess.run(
        [script, ROOT / ".venv" / "bin" / "python", version("llama-cpp-python")],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.strip()  # fmt: skip
    return Path(folder) / name


def budget_of(bench: Bench, bpw: float) -> int:
    return int(bpw * bench.topology.total_parameters / 8)


# -- llama-quantize presets


def quantize(source: Path, imatrix: Path, preset: str, out: Path, threads: int, *options: str) -> str:
    command = [tool("llama-quantize"), *options, "--imatrix", imatrix, source, out, preset, threads]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"llama-quantize {preset}: {done.stdout[-2000:]}")
    return done.stdout


def preset_sizes(bench: Bench, source: Path, imatrix: Path, label: str) -> dict[str, int]:
    """Bytes of each preset's file to 0.1 %: --dry-run prints MiB of tensors, the header comes on top."""
    path = bench.work / f"presets-{label}.json"
    if not path.exists():
        sizes = {}
        header = min(tensor.offset for tensor in open_shard(source)[0].tensors.values())
        for preset in PRESETS:
            log = quantize(source, imatrix, preset, bench.work / "dry.gguf", bench.threads, "--dry-run")
            found = re.search(r"quant size\s*=\s*([\d.]+) MiB", log)
            if found is None:
                raise RuntimeError(f"llama-quantize --dry-run printed no size: {log[-500:]}")
            sizes[preset] = header + int(float(found[1]) * 2**20)
        path.write_text(json.dumps(sizes))
    loaded: dict[str, int] = json.loads(path.read_text())
    return loaded


def around(sizes: dict[str, int], budget: int) -> list[str]:
    """The largest preset within the budget and the smallest above it."""
    below = [p for p, size in sizes.items() if size <= budget]
    above = [p for p, size in sizes.items() if size > budget]
    return [max(below, key=sizes.__getitem__)] * bool(below) + [min(above, key=sizes.__getitem__)] * bool(above)


def presets(bench: Bench, bpw: float) -> list[Row]:
    """The two presets around the budget: what fits, and what has more bytes than ours."""
    return _presets(bench, bpw, bench.original, bench.stats, "llama-quantize")


def _presets(bench: Bench, bpw: float, source: Path, imatrix: Path, label: str) -> list[Row]:
    rows = []
    budget = budget_of(bench, bpw)
    for preset in around(preset_sizes(bench, source, imatrix, label), budget):
        key = f"preset {label} {preset}"
        row = bench._known(key)
        if row is None:
            out = bench.work / "preset.gguf"
            quantize(source, imatrix, preset, out, bench.threads)
            row = bench.measured(key, label, bpw, preset, out)
        fits = "fits" if row.bytes <= budget else "more bytes"
        rows.append(dataclasses.replace(row, budget_bpw=bpw, detail=f"{preset} ({fits})"))
    return rows


def pruned_preset(bench: Bench, bpw: float) -> list[Row]:
    """REAP at 75 %, k as it was (as its authors do), then the presets around the budget."""
    source, imatrix = bench.work / "reap.gguf", bench.work / "reap.stats.gguf"
    if not (source.exists() and imatrix.exists()):
        used = bench.topology.experts_used
        plan = cp.plan(bench.checkpoint, stats=bench.stats, criterion="reap", keep=REAP_KEEP, experts_used=used,
                       keep_types=True)  # fmt: skip
        cp.compress(bench.checkpoint, plan, source, threads=bench.threads)
        cp.write_stats(imatrix, cut(cp.read_stats(bench.stats), plan.pruning.kept))
    return _presets(bench, bpw, source, imatrix, f"REAP {REAP_KEEP} + llama-quantize")


def cut(stats: Stats, kept: Mapping[int, tuple[int, ...]]) -> Stats:
    """The importance matrix of the kept experts in their new order."""
    entries = {}
    for name, entry in stats.imatrix.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        ids = list(kept.get(layer, ()))
        per_expert = len(entry.count) > 1 and ids
        entries[name] = ImatrixEntry(entry.sum2[ids], entry.count[ids]) if per_expert else entry
    return dataclasses.replace(stats, imatrix=entries, routing={})


# -- rules


def paper_rules(bench: Bench, bpw: float) -> list[Row]:
    """The release's rules at the largest base that fits; all experts kept, as its published files of a type."""
    for base in reversed(range(len(LADDER) - 1)):
        # When not even the smallest fits, it is shown with its more bytes.
        made = _ruled(bench, bpw, f"base {LADDER[base]}", "100%", lambda f, n, b=base: _depth(f, n, b), fits=base > 0)
        if made:
            return [dataclasses.replace(made[0], variant="the paper's release")]
    return []


def _depth(planning: PlanningInput, name: str, base: int) -> str:
    info = planning.checkpoint.tensors[name]
    blocks = planning.topology.block_count
    ends = max(1, blocks // 8)
    if info.role == Role.EXPERT:
        at_end = info.layer is not None and (info.layer < ends or info.layer >= blocks - ends)
        return LADDER[base + 1] if at_end else LADDER[max(base - 1, 0)]
    if info.role == Role.ATTENTION:
        return "Q4_K"
    return {Role.SHARED_EXPERT: "Q6_K", Role.EMBEDDING: "Q2_K", Role.OUTPUT: "Q5_K"}.get(info.role, "Q4_K")


def pruning_only(bench: Bench, bpw: float) -> list[Row]:
    """Q8_0, as many experts as fit, k scaled with them."""
    t = bench.topology
    step = t.groups
    for count in range(t.expert_count, 0, -step):
        made = _ruled(bench, bpw, f"Q8_0, {count} experts", str(count), lambda f, n: "Q8_0")
        if made:
            return [dataclasses.replace(made[0], variant="pruning only (Q8_0)")]
    return []


def _ruled(bench: Bench, bpw: float, detail: str, keep: str, rule: Callable[..., str], fits: bool = True) -> list[Row]:
    candidates = Candidates(bench.planning(None, keep=keep))
    try:
        count = parse_keep(keep, bench.topology, candidates.planning.policy)
        candidate = candidates.candidate(count, candidates.scaled(count))
    except cp.CollabError:
        return []
    plan = candidates.finish(candidate, _types(candidates.planning, rule), {})
    if fits and plan.bytes > budget_of(bench, bpw):
        return []
    return [bench.built(f"rule {detail} {bpw}", detail, bpw, detail, plan)]


def _types(planning: PlanningInput, rule: Callable[..., str]) -> dict[str, str]:
    found = {}
    for name, info in planning.checkpoint.tensors.items():
        if quantizable(info):
            kind = possible(planning, info, rule(planning, name))
            found[name] = kind if bits_per_weight(kind) < bits_per_weight(info.type.name) else info.type.name
    return found


RIVALS: tuple[Callable[[Bench, float], list[Row]], ...] = (presets, paper_rules, pruning_only)
