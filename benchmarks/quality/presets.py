"""llama-quantize's presets, of the whole model and of one that REAP pruned: rivals at the same bytes."""

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
from benchmarks.quality.bench import ROOT, Bench, Row
from collab_plugin.checkpoint.gguf import open_shard
from collab_plugin.stats.stats import ImatrixEntry, Stats

PRESETS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S",
           "IQ3_M", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")  # fmt: skip


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
    by_size = sorted(sizes, key=sizes.__getitem__)
    below = [preset for preset in by_size if sizes[preset] <= budget]
    return below[-1:] + by_size[len(below) : len(below) + 1]


def presets(bench: Bench, variant: str, bpw: float) -> list[Row]:
    """The two presets around the budget: what fits, and what has more bytes than ours."""
    return _presets(bench, bpw, bench.original, bench.stats, variant)


def reap(share: str) -> Callable[[Bench, str, float], list[Row]]:
    """REAP at ``share`` of the experts, k as it was (as its authors do), then the largest preset that fits."""

    def make(bench: Bench, variant: str, bpw: float) -> list[Row]:
        source = bench.work / f"reap-{share}.gguf"
        imatrix = source.with_suffix(".stats.gguf")
        if not (source.exists() and imatrix.exists()):
            used = bench.topology.experts_used
            plan = cp.plan(bench.checkpoint, stats=bench.stats, criterion="reap", keep=share, experts_used=used,
                           keep_types=True, threads=bench.threads)  # fmt: skip
            cp.compress(bench.checkpoint, plan, source, threads=bench.threads)
            cp.write_stats(imatrix, cut(cp.read_stats(bench.stats), plan.pruning.kept))
        return [row for row in _presets(bench, bpw, source, imatrix, variant, fitting=True) if row.fits]

    return make


def _presets(bench: Bench, bpw: float, source: Path, imatrix: Path, variant: str, fitting: bool = False) -> list[Row]:
    rows = []
    sizes = preset_sizes(bench, source, imatrix, source.stem)
    budget = budget_of(bench, bpw)
    for preset in around(sizes, budget):
        if fitting and sizes[preset] > budget:
            continue
        key = f"preset {source.stem} {preset} {bench.chunks}"
        row = bench.known(key)
        if row is None:
            out = bench.work / "preset.gguf"
            quantize(source, imatrix, preset, out, bench.threads)
            row = bench.measured(key, variant, bpw, preset, out)
        rows.append(dataclasses.replace(row, variant=variant, budget_bpw=bpw, detail=preset))
    return rows


def cut(stats: Stats, kept: Mapping[int, tuple[int, ...]]) -> Stats:
    """The importance matrix of the kept experts in their new order."""
    entries = {}
    for name, entry in stats.imatrix.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        ids = list(kept.get(layer, ()))
        per_expert = len(entry.count) > 1 and ids
        entries[name] = ImatrixEntry(entry.sum2[ids], entry.count[ids]) if per_expert else entry
    return dataclasses.replace(stats, imatrix=entries, routing={})
