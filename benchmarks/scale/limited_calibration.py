"""Calibrating a file that is larger than the memory: what is read from the disk, and how long it takes.

    python -m benchmarks.scale.limited_calibration [--experts 40] [--limit 1024] [--chunks 8] [--scratch FOLDER]

A layer of DeepSeek-V3's widths at Q8_0, calibrated by the command in a control group whose memory, page cache included,
is limited to ``--limit`` MiB, and without a limit; in batches of one window and of four. Every run begins with nothing
of the file in the page cache. Read: by the process from the disk, as the system counts it. The stats of the same
batches, with and without a limit, must be the same bytes. Needs the right to make a control group. Writes
limited_calibration.csv, prints a table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.throughput.wide_folder import write_wide
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.proxy import proxy_plan
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.progress import untold

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
TEXT = ROOT / "tests" / "texts" / "english.calibration.txt"
CTX, TOGETHER = 128, (1, 4)


@dataclasses.dataclass(frozen=True)
class Limited:
    """One calibration. ``limit_mib``: 0 for none. ``batch``: tokens that run at a time. ``read_bytes``: from the disk.
    ``own_bytes``: most memory that holds no file's pages. ``same``: the stats are those without a limit, byte
    by byte."""

    file_bytes: int
    limit_mib: int
    batch: int
    tokens: int
    read_bytes: int
    own_bytes: int
    seconds: float
    cpu_seconds: float
    same: bool


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--experts", type=int, default=40)
    p.add_argument("--limit", type=int, default=1024, help="MiB")
    p.add_argument("--chunks", type=int, default=8)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--scratch", type=Path, help="folder for the files, on the disk that is meant")
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.scratch, prefix="collab-limited-") as name:
        scratch = Path(name)
        model = _model(scratch, a.experts)
        rows = [
            row for together in TOGETHER for row in _pair(model, scratch, together * CTX, a.limit, a.chunks, a.threads)
        ]
    a.output.mkdir(parents=True, exist_ok=True)
    with (a.output / "limited_calibration.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in dataclasses.fields(Limited))
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()] for row in rows)
    Console(width=120).print(_table(rows))


def _model(scratch: Path, experts: int) -> Path:
    """The layer as a GGUF at Q8_0, as `calibrate --proxy Q8_0` would make it."""
    folder, model = write_wide(scratch / "folder", experts=experts, heads=16), scratch / "model.gguf"
    checkpoint = open_safetensors(folder)
    plan = proxy_plan(checkpoint, "Q8_0")
    compress(checkpoint, plan, None, model, kernels=first_kernels(), threads=1, report=untold)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return model


def _pair(model: Path, scratch: Path, batch: int, limit: int, chunks: int, threads: int) -> list[Limited]:
    """Without a limit, and with it."""
    rows: list[Limited] = []
    expected = b""
    for most in (0, limit):
        out = scratch / f"stats-{batch}-{most}.gguf"
        read, own, seconds, cpu = _calibrated(model, out, batch, most, chunks, threads)
        found = out.read_bytes()
        expected = expected or found
        size = model.stat().st_size
        rows.append(Limited(size, most, batch, chunks * CTX, read, own, seconds, cpu, found == expected))
        print(rows[-1], file=sys.stderr)
    return rows


def _calibrated(
    model: Path, out: Path, batch: int, limit: int, chunks: int, threads: int
) -> tuple[int, int, float, float]:
    """Of the command: bytes read, the most bytes of memory that are no file's, seconds of the clock and of the
    processor."""
    from small_models.memory_limit import memory_limit

    _forget(model)
    words = ["calibrate", model, "--text", TEXT, "--ctx", CTX, "--chunks", chunks, "--ubatch", batch]
    command = [sys.executable, "-m", "collab_plugin", *map(str, [*words, "--threads", threads, "-o", out])]
    with memory_limit(limit * 2**20) if limit else nullcontext() as join:
        if limit and join is None:
            sys.exit("this system lets us make no control group: nothing is limited here")
        before, start, read = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), _read_bytes()
        with subprocess.Popen(command, preexec_fn=join, stderr=subprocess.PIPE, text=True) as run:
            own = 0
            while run.poll() is None:
                own = max(own, _own_memory(run.pid))
                time.sleep(0.1)
            seconds = time.monotonic() - start
            if run.returncode:
                assert run.stderr is not None
                sys.exit(f"calibrate ended with {run.returncode}: {run.stderr.read()[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _read_bytes() - read, own, seconds, cpu


def _read_bytes() -> int:
    """What this process and its ended children have read from disks."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _own_memory(pid: int) -> int:
    """Anonymous resident memory of a process and those below it, in bytes."""
    total = 0
    with suppress(psutil.Error, OSError):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
    return total


def _forget(path: Path) -> None:
    """Let the page cache drop the file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _table(rows: Sequence[Limited]) -> Table:
    figures = ("own memory", "read", "times the file", "s", "s of processor", "same stats")
    table = Table("file", "limit", "tokens", "at a time", *figures)
    for r in rows:
        sizes = [f"{size / 2**20:,.0f} MiB" for size in (r.file_bytes, r.own_bytes, r.read_bytes)]
        table.add_row(
            sizes[0], f"{r.limit_mib:,} MiB" if r.limit_mib else "none", f"{r.tokens:,}", f"{r.batch:,}", *sizes[1:],
            f"{r.read_bytes / r.file_bytes:.2f}", f"{r.seconds:.1f}", f"{r.cpu_seconds:.1f}",
            "yes" if r.same else "NO",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
