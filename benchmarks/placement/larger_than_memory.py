"""A file larger than the memory allowed: tokens a second and bytes read by the order of experts, hints on and off.

    python -m benchmarks.placement.larger_than_memory [--allowed 0.4 0.7] [--tokens 60]

skewed-qwen2moe with each expert 16 times as wide (the added rows and columns are zeros, so that it routes as before),
as F16, 0.8 GB: in the order of the model, of heat and of co-activation, by a trace of English and Python calibration
text. Each is run token by token over validation text, English and then Python, in a control group whose memory holds
that share of the file and what the process takes beside. Needs Linux, and the right to make a control group. What is
read is counted by the system (/proc/self/io). Beside it stands what an LRU of whole experts, as many as fit, would have
read. Prints a table; writes placement_disk.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, TEXTS
from benchmarks.vllm.load import write_csv

RESULTS = Path(__file__).parents[1] / "results"
MODEL = ROOT / "benchmarks" / "models" / "skewed-qwen2moe"
TIMES, CTX, WARM = 16, 128, 48
ORDERS = ("stock", "heat", "co-activation")
BESIDE = 64 * 2**20
"""Bytes that the process takes beside the file."""


def widened(model: Path, out: Path, times: int = TIMES) -> Path:
    """``model`` as F16 with experts ``times`` as wide; the rest of a wide expert is zero."""
    checkpoint = cp.open_checkpoint(model)
    writer = GGUFWriter(out, checkpoint.architecture)
    width = f"{checkpoint.architecture}.expert_feed_forward_length"
    for key, meta in checkpoint.metadata.items():
        if key != "general.architecture":
            value = meta.value * times if key == width else meta.value
            writer.add_key_value(key, value, meta.type, meta.subtype)
    for name, info in checkpoint.tensors.items():
        values = checkpoint.read(name)
        if info.role == cp.Role.EXPERT:
            axis = 2 if "down" in name else 1
            more = [(0, 0), (0, 0), (0, 0)]
            more[axis] = (0, values.shape[axis] * (times - 1))
            values = np.pad(values, more)
        matrix = cp.quantizable(info)
        kind = GGMLQuantizationType.F16 if matrix else GGMLQuantizationType.F32
        writer.add_tensor(name, values.astype(np.float16 if matrix else np.float32), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def run_one(model: Path, texts: Sequence[Path], tokens: int, hints: bool) -> dict[str, float]:
    """In the child: run ``tokens`` of each text one by one; what was read from the disk after the first ones."""
    from collab_llamacpp.native.model import LoadedModel
    from collab_llamacpp.native.page_hints import PageHints

    observer = PageHints() if hints else None
    with LoadedModel(model, ctx=CTX, threads=1, callback=observer.callback if observer else None) as session:
        read = seconds = 0.0
        for text in texts:
            ids = session.tokenize(text.read_text("utf-8")[: 12 * (tokens + WARM)])[: tokens + WARM]
            for at, token in enumerate(ids):
                if at % CTX == 0:
                    session.clear()
                if at == WARM:
                    before, start = _read_bytes(), time.perf_counter()
                session.decode([int(token)], 0, at % CTX)
                session.logits(1)[0, 0]
            read += _read_bytes() - before
            seconds += time.perf_counter() - start
        if observer:
            observer.finish()
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return {
        "tokens_per_second": len(texts) * tokens / seconds,
        "read_mb_a_token": read / 1e6 / (len(texts) * tokens),
        "anonymous_mb": int(anonymous.split()[1]) / 1000,
    }


def _read_bytes() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def limited(model: Path, allowed: int, tokens: int, hints: bool) -> dict[str, float]:
    """``run_one`` in a child under the limit, with nothing of the file in memory."""
    sys.path.insert(0, str(ROOT / "tests"))
    from small_models.memory_limit import memory_limit

    texts = [str(TEXTS / f"{name}.validation.txt") for name in ("english", "python")]
    job = json.dumps([str(model), texts, tokens, hints])
    _evict(model)
    with memory_limit(allowed) as join:
        if join is None:
            sys.exit("this system lets us make no control group with a memory limit")
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, "--child", job],
            preexec_fn=join, capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _evict(file: Path) -> None:
    """Have none of ``file`` in the page cache."""
    handle = os.open(file, os.O_RDONLY)
    os.fdatasync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def simulated(model: Path, allowed: int, tokens: int, folder: Path) -> float:
    """MB a token that an LRU of whole experts over all layers would read, of the experts alone."""
    checkpoint = cp.open_checkpoint(model)
    experts = [info for info in checkpoint.tensors.values() if info.role == cp.Role.EXPERT]
    one = sum(info.nbytes // info.shape[0] for info in experts) // len({info.layer for info in experts})
    rest = sum(info.nbytes for info in checkpoint.tensors.values()) - sum(info.nbytes for info in experts)
    room = (allowed - BESIDE - rest) // one
    missed = used = 0
    held: dict[tuple[int, int], None] = {}
    for text in ("english", "python"):
        trace = folder / f"{text}.npz"
        if not trace.exists():
            cp.calibrate(model, texts=TEXTS / f"{text}.validation.txt", ctx=CTX, chunks=4, trace=trace, threads=1)
        chosen = cp.read_trace(trace).chosen[: tokens + WARM]
        for at, token in enumerate(chosen.tolist()):
            for layer, ids in enumerate(token):
                for expert in ids:
                    there = held.pop((layer, expert), 0) is None
                    held[layer, expert] = None
                    missed += at >= WARM and not there
                    if len(held) > room:
                        held.pop(next(iter(held)))
            used += at >= WARM
    return missed * one / 1e6 / used


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allowed", type=float, nargs="+", default=[0.4, 0.7])
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--child")
    given = parser.parse_args(arguments)
    if given.child:
        model, texts, tokens, hints = json.loads(given.child)
        print(json.dumps(run_one(Path(model), [Path(text) for text in texts], tokens, hints)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="collab-disk-") as name:
        folder = Path(name)
        files = {"stock": widened(MODEL, folder / "stock.gguf")}
        trace = folder / "calibration"
        trace.mkdir()
        for text in ("english", "python"):
            cp.calibrate(
                MODEL, texts=TEXTS / f"{text}.calibration.txt", ctx=CTX, chunks=80, trace=trace / f"{text}.npz",
                threads=1, warn=lambda _: None,
            )  # fmt: skip
        plan = copy_of(files["stock"])
        for order in ORDERS[1:]:
            files[order] = folder / f"{order}.gguf"
            cp.compress(files["stock"], plan, files[order], order=order, trace=trace, threads=1)
        size = files["stock"].stat().st_size
        for share in given.allowed:
            allowed = int(share * size) + BESIDE
            lru = simulated(files["stock"], allowed, given.tokens, folder)
            for order, hints in ((order, hints) for order in ORDERS for hints in (False, True)):
                found = limited(files[order], allowed, given.tokens, hints)
                rows.append(
                    {"allowed": share, "order": order, "hints": hints}
                    | {name: round(value, 2) for name, value in found.items()}
                    | {"lru_mb_a_token": round(lru, 2)}
                )
                print(rows[-1], file=sys.stderr, flush=True)
    write_csv(RESULTS / "placement_disk.csv", rows)
    table = Table("allowed", "order", "hints", "tokens/s", "MB read a token", "an LRU of experts")
    for row in rows:
        table.add_row(
            f"{row['allowed']:.0%}", row["order"], "yes" if row["hints"] else "no", f"{row['tokens_per_second']:.1f}",
            f"{row['read_mb_a_token']:.1f}", f"{row['lru_mb_a_token']:.1f}",
        )  # fmt: skip
    Console(width=140).print(table)


def copy_of(model: Path) -> cp.Plan:
    from collab_plugin.plans.copy_plan import copy_plan

    return copy_plan(cp.open_checkpoint(model))


if __name__ == "__main__":
    main()
