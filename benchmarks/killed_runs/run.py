"""Does a run of `compress` that is killed (kill -9) at random moments end in the same bytes as one that is not?

python -m benchmarks.killed_runs.run --runs 50
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    args = parser.parse_args()
    from small_models.killed_runs import killed_until_done
    from small_models.tiny_moe import write_qwen3moe

    from collab_plugin.checkpoint.gguf import open_gguf
    from collab_plugin.compression.gguf_file import compress
    from collab_plugin.plans.copy_plan import copy_plan
    from collab_plugin.progress import untold

    with tempfile.TemporaryDirectory(prefix="collab-killed-") as name:
        folder = Path(name)
        checkpoint = open_gguf(write_qwen3moe(folder / "model.gguf", experts=24))
        plan, whole, out = copy_plan(checkpoint), folder / "whole.gguf", folder / "out.gguf"
        begun = time.monotonic()
        compress(checkpoint, plan, None, whole, kernels=None, threads=2, report=untold)
        seconds = time.monotonic() - begun
        same, killed = 0, []
        for seed in range(args.runs):
            killed.append(killed_until_done(checkpoint, plan, out, whole.read_bytes(), seed, seconds))
            same += out.read_bytes() == whole.read_bytes()
            out.unlink()
        print(
            f"{same} of {args.runs} with the same bytes; {sum(killed)} were killed, {min(killed)} to {max(killed)} "
            f"before one ended; {plan.bytes:,} bytes, {seconds:.2f} s without"
        )
    sys.exit(same != args.runs)


if __name__ == "__main__":
    main()
