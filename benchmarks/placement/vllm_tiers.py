"""Hit rates of placement policies inside vLLM, with the fast memory at 10, 25, 50 and 80 % of the experts.

    python -m benchmarks.placement.vllm_tiers [--tokens 384] [--policies lfu-steady]

The model is tests/models/tiny-qwen3moe (32 experts, 4 a token, trained on English, German and Python). Policies learn
from English, and serve other English text first, Python code after it. Every token is one step. Two ways to serve a
miss: copied, and the expert stays; or computed in host memory, with up to an eighth of the places rearranged every 16
steps. Beside each hit rate is what the simulator says of the same choices with every miss copied, and the optimum.

On a processor both memories are the same, so that hit rates are real and speeds say only what the bookkeeping and the
copies cost. Prints a table; writes results/placement_vllm.csv and placement_vllm.png. Rows of policies that are not
among ``--policies`` stay as they are: hit rates depend on the choices alone, which are the same in each run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.vllm.artifact import ggml_folder
from benchmarks.vllm.load import HERE, MODELS, ROOT, installed, vllm_python, write_csv

MODEL, EXPERTS = MODELS / "tiny-qwen3moe", 32
ROOMS = (4, 8, 16, 26)
STATIC, DYNAMIC = ("uniform", "most-selected"), ("lru", "lru-warm", "lfu-decay", "lfru")
NEVER = 10**9
WAYS = (
    *((name, "copy", NEVER) for name in (*STATIC, *DYNAMIC)),
    ("lfu-decay", "host", 16),
    ("lru-warm", "host", 16),
    ("lfu-steady", "copy", NEVER),
    ("lfu-steady", "host", 16),
)
PARTS = {"English": "english.validation.txt", "Python": "python.validation.txt"}
COLOURS = {
    "uniform": "#999999", "most-selected": "#000000", "lru": "#56B4E9", "lru-warm": "#0072B2", "lfu-decay": "#D55E00",
    "lfru": "#E69F00", "lfu-steady": "#CC79A7", "optimum": "#009E73",
}  # fmt: skip


def tokens_of(name: str, count: int) -> list[int]:
    text = (ROOT / "tests" / "texts" / name).read_text("utf-8")[: 12 * count]
    found: list[int] = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids[:count]
    return found


def served(python: Path, site: Path, tokens: int, policies: Sequence[str]) -> list[dict[str, Any]]:
    job = {
        "calibration": tokens_of("english.calibration.txt", 2 * tokens),
        "parts": {part: tokens_of(name, tokens) for part, name in PARTS.items()},
        "rooms": ROOMS,
        "ways": [way for way in WAYS if way[0] in policies],
    }
    environment = {
        "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "COLLAB_GGML": ggml_folder(),
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for apply_model, in that very process
    }  # fmt: skip
    done = subprocess.run(
        [python, "-P", Path(__file__).with_name("tiers_child.py"), MODEL, json.dumps(job)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("TIERS ")]


def others(file: Path, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of ``file`` of other policies, as they were measured before."""
    if not file.exists():
        return []
    with file.open(newline="") as before:
        kept = [row for row in csv.DictReader(before) if row["policy"] not in (*policies, "optimum")]
    texts = ("policy", "misses")
    return [{n: v if n in texts else float(v) for n, v in row.items()} | {"room": int(row["room"])} for row in kept]


def hit_rate(row: Mapping[str, Any]) -> float:
    """Over all parts, which are of one length."""
    return float(statistics.mean(row[f"{part} hits"] for part in PARTS))


def name_of(row: Mapping[str, Any]) -> str:
    return f"{row['policy']}, misses on the processor" if row["misses"] == "host" else str(row["policy"])


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        "experts in fast memory", "policy", *PARTS, "all", "simulated", "MB moved", "tokens/s", title="hit rates"
    )
    for row in rows:
        share = f"{row['room']} of {EXPERTS} ({row['room'] / EXPERTS:.0%})"
        if row["policy"] == "optimum":
            table.add_row(share, "optimum", *[""] * (len(PARTS) + 1), f"{row['simulated']:.3f}", "", "")
            continue
        speed = len(PARTS) / sum(1 / row[f"{part} tokens_s"] for part in PARTS)
        table.add_row(
            share, name_of(row), *(f"{row[f'{part} hits']:.3f}" for part in PARTS), f"{hit_rate(row):.3f}",
            f"{row['simulated']:.3f}" if row["misses"] == "copy" else "",
            f"{sum(row[f'{part} mb'] for part in PARTS):,.0f}", f"{speed:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)


def plot(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Hit rate over the room, by policy: on the text that policies learnt from, and after it changed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PARTS), figsize=(6 * len(PARTS), 4.2), sharey=True)
    for axis, part in zip(axes, PARTS, strict=True):
        for name in dict.fromkeys(name_of(row) for row in rows):
            these = [row for row in rows if name_of(row) == name and f"{part} hits" in row]
            if these:
                style = "dashed" if these[0]["misses"] == "host" else "solid"
                shares, rates = [r["room"] / EXPERTS for r in these], [r[f"{part} hits"] for r in these]
                colour = COLOURS[these[0]["policy"]]
                axis.plot(shares, rates, color=colour, linestyle=style, marker="o", markersize=3, label=name)
        axis.set_title(part, fontsize=10)
        axis.set_xlabel("share of the experts in the fast memory")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("hit rate")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=384, help="of each text; twice as many are learnt from")
    p.add_argument("--policies", nargs="+", default=[*STATIC, *DYNAMIC, "lfu-steady"])
    p.add_argument("--results", type=Path, default=HERE / "results")
    a = p.parse_args()
    python = vllm_python()
    with tempfile.TemporaryDirectory() as folder:
        rows = served(python, installed(Path(folder)), a.tokens, a.policies)
    file = a.results / "placement_vllm.csv"
    rows = [*others(file, a.policies), *rows]
    rows.sort(key=lambda row: row["room"])
    show(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(file, [{name: row.get(name, "") for name in names} for row in rows])
    plot(rows, a.results / "placement_vllm.png")


if __name__ == "__main__":
    main()
