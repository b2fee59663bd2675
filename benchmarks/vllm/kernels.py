"""A layer of experts at types of ggml beside vLLM's unquantized one, in one process of vLLM's environment.

    python -m benchmarks.vllm.kernels [--types Q8_0,Q4_K,IQ4_XS,IQ3_S,IQ2_XXS] [--tokens 1,2,4,8,16] [--rounds 10]

64 experts of 768 x 512, 8 a token; all ways in turn, one thread, the thread's own time, so that other work on the
machine counts for little. Prints a table; writes results/vllm_kernels.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.vllm.artifact import ggml_folder
from benchmarks.vllm.load import HERE, installed, measured, vllm_python, write_csv


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--types", default="Q8_0,Q4_K,IQ4_XS,IQ3_S,IQ2_XXS")
    p.add_argument("--tokens", default="1,2,4,8,16")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--results", type=Path, default=HERE / "results")
    a = p.parse_args()
    python = vllm_python()
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PYTHONPATH": str(installed(Path(folder))), "COLLAB_GGML": ggml_folder(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-P", Path(__file__).with_name("kernels_child.py"), a.types, a.tokens, str(a.rounds)],
            env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found = measured(done.stdout)
    rows: list[dict[str, Any]] = []
    for tokens, ways in found["times"].items():
        middle = {way: statistics.median(times) for way, times in ways.items()}
        for way, times in ways.items():
            rows.append(
                {"isa": found["isa"], "tokens": tokens, "experts": way, "ms": round(middle[way], 3),
                 "least_ms": round(min(times), 3), "of_unquantized": round(middle["unquantized"] / middle[way], 2)}
            )  # fmt: skip
    write_csv(a.results / "vllm_kernels.csv", rows)
    numbers = list(found["times"])
    table = Table("experts", *(f"{n} tokens" for n in numbers), title=f"speed of unquantized ({found['isa']})")
    for way in dict.fromkeys(row["experts"] for row in rows):
        table.add_row(way, *(f"{row['of_unquantized']:.2f}" for row in rows if row["experts"] == way))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
