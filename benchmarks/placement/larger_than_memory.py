"""A file larger than the memory allowed: tokens a second and bytes read by the order of experts, hints on and off.

    python -m benchmarks.placement.larger_than_memory [--allowed 0.4 0.7] [--tokens 60] [--hints no yes lfu-steady]

skewed-qwen2moe with each expert 16 times as wide (the added rows and columns are zeros, so that it routes as before),
as F16, 0.8 GB: in the order of the model, of heat and of co-activation, by a trace of English and Python calibration
text. Each is run token by token over validation text, English and then Python, in a control group whose memory holds
that share of the file and what the process takes beside. Needs Linux, and the right to make a control group. What is
read is counted by the system (/proc/self/io), and what the page cache holds (memory.stat of the group). Beside it
stands what an LRU of whole experts, as many as the page cache holds, would have read for the same choices, and both as
hit rates: the share of the experts' bytes that a token uses and that were in memory. Hints are none, those of what is
read next, or with the name of a placement policy also of what can leave; beside that stands what the policy would have
read. Prints a table; writes placement_disk.csv, where rows that are not measured again stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, TEXTS
from benchmarks.vllm.load import write_csv

if TYPE_CHECKING:
    from collab_llamacpp.native.observe import Observer

    from collab_plugin.placement.policy import PlacementPolicy

RESULTS = Path(__file__).parents[1] / "results"
MODEL = ROOT / "benchmarks" / "models" / "skewed-qwen2moe"
TIMES, CTX, WARM = 16, 128, 48
ORDERS = ("stock", "heat", "co-activation")
NONE, NEXT = "no", "yes"
POLICY = "lfu-steady"
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


def run_one(model: Path, texts: Sequence[Path], tokens: int, hints: str) -> dict[str, float]:
    """In the child: run ``tokens`` of each text one by one; what was read from the disk after the first ones, and what
    the page cache of the control group holds in the end."""
    from collab_llamacpp.native.page_hints import PageHints

    observer = None if hints == NONE else PageHints(policy_of(hints), sizes_of(model).rest)
    read = seconds = 0.0
    for at, since in _decoded(model, texts, tokens, observer):
        if at == WARM:
            before = _read_bytes()
        elif at == tokens + WARM:
            read += _read_bytes() - before
            seconds += since
    if observer:
        observer.finish()
    return {
        "tokens_per_second": len(texts) * tokens / seconds,
        "read_mb_a_token": read / 1e6 / (len(texts) * tokens),
        "page_cache_mb": _page_cache() / 1e6,
        "room_mb": 0.0 if observer is None else observer.room / 1e6,
    }


def _decoded(model: Path, texts: Sequence[Path], tokens: int, observer: Observer | None) -> Iterator[tuple[int, float]]:
    """Decode each text's tokens; before each, and after the last: its number, and seconds since that of `WARM`."""
    from collab_llamacpp.native.model import LoadedModel

    with LoadedModel(model, ctx=CTX, threads=1, callback=observer.callback if observer else None) as session:
        for text in texts:
            ids = session.tokenize(text.read_text("utf-8")[: 12 * (tokens + WARM)])[: tokens + WARM]
            start = 0.0
            for at, token in enumerate(ids):
                if at % CTX == 0:
                    session.clear()
                yield at, 0.0
                if at == WARM:
                    start = time.perf_counter()
                session.decode([int(token)], 0, at % CTX)
                session.logits(1)[0, 0]
            yield len(ids), time.perf_counter() - start


def choices(model: Path, texts: Sequence[Path], tokens: int) -> NDArray[np.int32]:
    """i32[tokens of all texts, layers, k]: what the router chooses in such a run."""
    from collab_llamacpp.native.observe import RoutingObserver

    observer = RoutingObserver()
    for _ in _decoded(model, texts, tokens, observer):
        pass
    observer.finish()
    return np.stack([np.concatenate(observer.chosen[layer]) for layer in sorted(observer.chosen)], 1)


def _read_bytes() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _page_cache() -> int:
    """Bytes of files in memory that this process's control group is charged with."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        folder, name = ("memory", "cache") if controllers == "memory" else ("", "file")
        stat = Path("/sys/fs/cgroup") / folder / own.lstrip("/") / "memory.stat"
        if controllers in ("memory", "") and stat.exists():
            told = dict(row.split() for row in stat.read_text().splitlines())
            if int(told.get(name, 0)):
                return int(told[name])
    sys.exit("the control group does not say what it holds of files")


def policy_of(hints: str) -> PlacementPolicy | None:
    from collab_plugin.plugins.manager import registry

    return None if hints == NEXT else registry().placement_policies[hints]


def limited(model: Path, allowed: int, tokens: int, hints: str) -> dict[str, float]:
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


@dataclass(frozen=True)
class Sizes:
    """Bytes: of one expert of one layer, and of all that are no experts; ``experts``: how many a layer has."""

    one: int
    rest: int
    experts: int


def sizes_of(model: Path) -> Sizes:
    checkpoint = cp.open_checkpoint(model)
    experts = [info for info in checkpoint.tensors.values() if info.role == cp.Role.EXPERT]
    one = sum(info.nbytes // info.shape[0] for info in experts) // len({info.layer for info in experts})
    rest = sum(info.nbytes for info in checkpoint.tensors.values()) - sum(info.nbytes for info in experts)
    return Sizes(one, rest, experts[0].shape[0])


def by_policy(sizes: Sizes, room: int, policy: PlacementPolicy, chosen: NDArray[np.int32], texts: int) -> float:
    """MB a token that a policy reads with ``room`` bytes of experts, in the steps of a run."""
    from collab_llamacpp.native.kept_pages import KeptPages

    layers = chosen.shape[1]
    kept = KeptPages(policy, dict.fromkeys(range(layers), sizes.one), sizes.experts, room)
    there: set[tuple[int, int]] = set()
    missed = used = 0
    for at, token in enumerate(chosen.tolist()):
        counts = at % (len(chosen) // texts) >= WARM
        used += counts
        for layer, ids in enumerate(token):
            there.difference_update(kept.leaving(layer, ids))
            wanted = {(layer, expert) for expert in ids}
            missed += counts * len(wanted - there)
            there |= wanted
    return missed * sizes.one / 1e6 / used


def simulated(sizes: Sizes, held: float, chosen: NDArray[np.int32], texts: int) -> tuple[float, float]:
    """MB a token that an LRU of whole experts over all layers, with ``held`` bytes of files, would read of experts
    after the first tokens of each text, and MB of experts that a token uses."""
    one, room = sizes.one, int((held - sizes.rest) // sizes.one)
    missed = used = 0
    cache: dict[tuple[int, int], None] = {}
    for at, token in enumerate(chosen.tolist()):
        counts = at % (len(chosen) // texts) >= WARM
        for layer, ids in enumerate(token):
            for expert in ids:
                there = cache.pop((layer, expert), 0) is None
                cache[layer, expert] = None
                missed += counts and not there
                if len(cache) > room:
                    cache.pop(next(iter(cache)))
        used += counts
    return missed * one / 1e6 / used, chosen[0].size * one / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allowed", type=float, nargs="+", default=[0.4, 0.7])
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--hints", nargs="+", default=[NONE, NEXT, POLICY], metavar="HINTS")
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
        texts = [TEXTS / f"{text}.validation.txt" for text in ("english", "python")]
        chosen = choices(files["stock"], texts, given.tokens)
        for share in given.allowed:
            allowed = int(share * size) + BESIDE
            sizes = sizes_of(files["stock"])
            for order, hints in ((order, hints) for order in ORDERS for hints in given.hints):
                found = limited(files[order], allowed, given.tokens, hints)
                expected, needed = simulated(sizes, 1e6 * found["page_cache_mb"], chosen, len(texts))
                if hints not in (NONE, NEXT):
                    policy, room = policy_of(hints), int(found["room_mb"] * 1e6)
                    assert policy is not None
                    expected = by_policy(sizes, room, policy, chosen, len(texts))
                found |= {"expected_mb_a_token": expected, "needed_mb_a_token": needed}
                found |= {"hits": 1 - found["read_mb_a_token"] / needed, "expected_hits": 1 - expected / needed}
                rows.append(
                    {"allowed": share, "order": order, "hints": hints}
                    | {name: round(value, 4) for name, value in found.items()}
                )
                print(rows[-1], file=sys.stderr, flush=True)
    _keep(RESULTS / "placement_disk.csv", rows)
    table = Table("allowed", "order", "hints", "tokens/s", "MB read a token", "simulated", "hits", "simulated")
    for row in rows:
        table.add_row(
            f"{row['allowed']:.0%}", row["order"], row["hints"], f"{row['tokens_per_second']:.1f}",
            f"{row['read_mb_a_token']:.1f}", f"{row['expected_mb_a_token']:.1f}",
            f"{row['hits']:.1%}", f"{row['expected_hits']:.1%}",
        )  # fmt: skip
    Console(width=140).print(table)


def _keep(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``rows`` in the place of those of the same name."""
    with file.open(newline="") as before:
        old = {_name(row): row for row in csv.DictReader(before)}
    merged = old | {_name(row): row for row in rows}
    write_csv(file, [{key: row.get(key, "") for key in rows[0]} for row in merged.values()])


def _name(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("allowed", "order", "hints"))


def copy_of(model: Path) -> cp.Plan:
    from collab_plugin.plans.copy_plan import copy_plan

    return copy_plan(cp.open_checkpoint(model))


if __name__ == "__main__":
    main()
