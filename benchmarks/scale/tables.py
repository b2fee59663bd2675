"""The tables of docs/scale.md, from the figures in benchmarks/results: python -m benchmarks.scale.tables

A test holds the page against them.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cluster.on_paper import on_paper
from benchmarks.throughput.run import read_runs

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "scale.md"
WEIGHTS_AN_EXPERT = 3 * 7168 * 2048
"""Of DeepSeek-V3."""


def _read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def planning() -> str:
    head = ("model", "budget", "experts kept", "top-k", "bytes", "bits a weight of the original", "bits of what stays",
            "KV cache at 8k, 32k", "roof, tokens/s", "selections lost", "planning: clock, processor",
            "peak")  # fmt: skip
    rows = []
    for r in _read("deepseek_v3.csv"):
        bits = ", ".join(f"{role} {value:.2f}" for role, value in json.loads(r["bits"]).items())
        cache = ", ".join(f"{size / 2**20:,.0f} MiB" for size in json.loads(r["cache"]))
        rows.append((
            r["model"], r["budget"], f"{r['kept']} of {r['experts']}", r["used"], f"{int(r['bytes']):,}",
            f"{float(r['bpw']):.3f}", bits, cache, f"{float(r['roof']):.1f}", f"{float(r['lost']):.1%}",
            f"{float(r['seconds']):.0f} s, {float(r['cpu_seconds']):.0f} s", f"{int(r['peak']) / 1e9:.2f} GB",
        ))  # fmt: skip
    return _table(head, rows)


def types() -> str:
    head = ("type", "million weights a second", "ns a weight: kernel", "decoding", "all else", "kernel share",
            "kernel and decoding", "hours on 16 cores", "on 64")  # fmt: skip
    rows = []
    for run in sorted((run for run in read_runs(RESULTS / "throughput.csv") if run.what == "types"),
                      key=lambda run: -run.core_weights_s):  # fmt: skip
        rest = (run.read + run.checksum + run.write + run.rest) / run.weights * 1e9
        kernel, decode = run.quantize / run.weights * 1e9, run.decode / run.weights * 1e9
        total = kernel + decode + rest
        kind = run.type + (", importance matrix" if run.imatrix else "")
        rows.append((
            kind, f"{run.core_weights_s / 1e6:.2f}", f"{kernel:.1f}", f"{decode:.2f}", f"{rest:.2f}",
            f"{kernel / total:.0%}", f"{(kernel + decode) / total:.0%}", f"{run.hours_16:.2f}", f"{run.hours_64:.2f}",
        ))  # fmt: skip
    return _table(head, rows)


def layer() -> str:
    head = ("type", "experts", "weights at that type", "s", "million weights a second", "MB/s read", "MB/s written",
            "kernel share of the clock", "peak memory")  # fmt: skip
    rows = [
        (r.type, str(r.experts), f"{r.weights / 1e9:.2f} billion", f"{r.seconds:.0f}", f"{r.weights_s / 1e6:.1f}",
         f"{r.read_mb_s:.0f}", f"{r.written_mb_s:.0f}", f"{r.kernel_share:.0%}", f"{r.peak_mib} MiB")
        for r in read_runs(RESULTS / "throughput.csv")
        if r.what == "layer"
    ]  # fmt: skip
    return _table(head, rows)


def rivals() -> str:
    head = ("types of experts, others", "kept", "ours", "converter", "llama-quantize", "ratio by the clock",
            "by the processor", "goal", "same bytes")  # fmt: skip
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for r in _read("throughput_llamacpp.csv"):
        found.setdefault((f"{r['experts_type']}, {r['others_type']}", r["keep"]), []).append(r)
    rows = []
    for (kinds, keep), each in found.items():
        seconds = [f"{statistics.median(float(r[f'{what}_s']) for r in each):.1f} s ("
                   f"{statistics.median(float(r[f'{what}_cpu_s']) for r in each):.1f})"
                   for what in ("ours", "convert", "quantize")]  # fmt: skip
        ratios = [f"{statistics.median(float(r[name]) for r in each):.2f}" for name in ("ratio", "cpu_ratio")]
        same = "" if not each[0]["same_bytes"] else "yes" if all(r["same_bytes"] == "True" for r in each) else "no"
        rows.append((kinds, f"{float(keep):.0%}", *seconds, *ratios, "0.8" if float(keep) == 1 else "0.6", same))
    return _table(head, rows)


def running() -> str:
    head = ("model", "cache", "context", "weights", "KV cache", "compute buffer: ours, llama.cpp's", "error of all",
            "KL divergence of the cache")  # fmt: skip
    rows = [
        (
            r["model"], r["kv_type"], f"{int(r['context']):,}", f"{int(r['weights']) / 2**20:.1f} MiB",
            f"{int(r['cache']) / 2**20:.2f}, {int(r['their_cache']) / 2**20:.2f} MiB",
            f"{int(r['compute']) / 2**20:.1f}, {int(r['their_compute']) / 2**20:.1f} MiB",
            f"{float(r['error']):+.2%}", f"{float(r['kld']):.2g}" if r["kld"] else "",
        )
        for r in _read("running_memory.csv")
    ]  # fmt: skip
    return _table(head, rows)


def limited() -> str:
    head = ("limit of memory", "tokens at a time", "memory of its own", "read from the disk", "times the file",
            "s: clock, processor", "stats of the same batches")  # fmt: skip
    rows = [
        (
            f"{int(r['limit_mib']):,} MiB" if int(r["limit_mib"]) else "none", f"{int(r['batch']):,}",
            f"{int(r['own_bytes']) / 2**20:,.0f} MiB", f"{int(r['read_bytes']) / 1e9:.2f} GB",
            f"{int(r['read_bytes']) / int(r['file_bytes']):.1f}",
            f"{float(r['seconds']):.0f}, {float(r['cpu_seconds']):.0f}",
            "the same bytes" if r["same"] == "True" else "other bytes",
        )
        for r in _read("limited_calibration.csv")
    ]  # fmt: skip
    return _table(head, rows)


def samples() -> str:
    head = ("type", "tokens an expert", "s an expert: gate and up", "hidden values", "factors of all λ", "judging λ",
            "fit of down", "feedback of down", "ns a weight", "V3: hours on 16 cores", "on 64",
            "bound of memory with 16 threads", "with 64")  # fmt: skip
    rows = []
    for r in _read("wide_repair.csv"):
        stages = [float(r[stage]) for stage in ("upper", "hidden", "factors", "judging", "fit", "down")]
        rows.append((
            r["type"], f"{int(r['tokens']):,}", *(f"{stage:.1f}" for stage in stages),
            f"{sum(stages) / WEIGHTS_AN_EXPERT * 1e9:,.0f}", f"{float(r['hours_16']):.1f}",
            f"{float(r['hours_64']):.1f}", f"{int(r['bound_16']) / 1e9:.0f} GB",
            f"{int(r['bound_64']) / 1e9:.0f} GB",
        ))  # fmt: skip
    return _table(head, rows)


def cluster() -> str:
    rows = [
        (
            r["workers"],
            f"{float(r['seconds']):.1f} s",
            f"{float(r['speedup']):.2f}",
            "yes" if r["same"] == "True" else "no",
        )
        for r in _read("cluster.csv")
    ]
    return _table(("workers", "time", "speed-up", "bytes of one machine"), rows)


def paper() -> str:
    runs = [run for run in read_runs(RESULTS / "throughput.csv") if run.what == "types"]
    head, rows = on_paper(runs)
    return _table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made for made in (planning, types, layer, rivals, running, limited, samples, cluster, paper)
}


def main() -> None:
    page = PAGE.read_text("utf-8")
    for name, made in TABLES.items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, made=made: f"{found[1]}{made()}\n{found[2]}",  # type: ignore[misc]  # a default is no type of a lambda
            page,
            flags=re.DOTALL,
        )
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
