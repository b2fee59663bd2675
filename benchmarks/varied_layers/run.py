"""As many experts in every layer, or each layer its own number (`plan --layers varied`): which loses less?

    python -m benchmarks.varied_layers.run [--keep 50% 75%] [--criteria freq-score reap] [--windows 8]

The trained models that are stored as BF16 (transformers runs FP8 on GPUs alone), calibrated on 12,288 tokens of each of
tests/texts/*.calibration.txt and pruned at their own precision, with as many experts a token as before; judged by
transformers, in vLLM's environment, on windows of 256 tokens of *.validation.txt: mean KL divergence from the unpruned
model. Prints a table; writes layers.csv and layers.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.quality.bench import TEXTS, trained_models
from benchmarks.vllm.load import HERE, ROOT, vllm_python, write_csv
from benchmarks.vllm.plot import BLACK, BLUE

LAYERS: tuple[Literal["same", "varied"], ...] = ("same", "varied")


def plans(model: Path, folder: Path, keeps: Sequence[str], criteria: Sequence[str]) -> list[dict[str, Any]]:
    """Calibrate once, then a plan for each combination."""
    stats = cp.calibrate(model, texts=sorted(TEXTS.glob("*.calibration.txt")), chunks=24)
    checkpoint = cp.open_checkpoint(model)
    used = cp.inspect(checkpoint).experts_used
    made = []
    for criterion, keep, layers in product(criteria, keeps, LAYERS):
        out = folder / f"{criterion}-{keep.rstrip('%')}-{layers}.json"
        plan = cp.plan(checkpoint, stats=stats, keep=keep, keep_types=True, layers=layers, criterion=criterion,
                       experts_used=used)  # fmt: skip
        cp.write_plan(out, plan)
        made.append({"criterion": criterion, "keep": keep, "layers": layers, "plan": str(out)})
    return made


def judge(python: Path, model: Path, made: Sequence[dict[str, Any]], windows: int) -> list[dict[str, Any]]:
    """The plans' rows with ``mean_kld`` and ``stderr``, in nats, and experts kept by layer."""
    texts = sorted(TEXTS.glob("*.validation.txt"))
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(
        [python, "-P", Path(__file__).with_name("measure.py"), model, str(windows), *texts],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        input=json.dumps([row["plan"] for row in made]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        {"model": model.name, **{k: v for k, v in row.items() if k != "plan"}, **figures}
        for row, figures in zip(made, found, strict=True)
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("model", "criterion", "keep", "same", "varied", "varied / same", "varied: experts by layer")
    for same, varied in zip(rows[::2], rows[1::2], strict=True):
        klds = [f"{row['mean_kld']:.4f} ±{row['stderr']:.4f}" for row in (same, varied)]
        ratio = f"{varied['mean_kld'] / same['mean_kld']:.2f}"
        table.add_row(same["model"], same["criterion"], same["keep"], *klds, ratio, varied["experts"])
    Console(width=140).print(table)


def plot(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """A panel a model and criterion: mean KL divergence over the share kept, same and varied."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((r["model"], r["criterion"]) for r in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for layers, colour in zip(LAYERS, (BLUE, BLACK), strict=True):
            these = [r for r in rows if (r["model"], r["criterion"], r["layers"]) == (*panel, layers)]
            shares = [float(r["keep"].rstrip("%")) for r in these]
            errors = [2 * r["stderr"] for r in these]
            axis.errorbar(shares, [r["mean_kld"] for r in these], errors, color=colour, label=layers, capsize=2)
        axis.set_title("\n".join(panel), fontsize=9)
        axis.set_xlabel("experts kept (%)")
        axis.set_yscale("log")
    axes[0][0].set_ylabel("mean KL divergence (nats)")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--keep", nargs="+", default=["50%", "62.5%", "75%", "87.5%"])
    p.add_argument("--criteria", nargs="+", default=["freq-score", "reap"])
    p.add_argument("--windows", type=int, default=8, help="of each text")
    p.add_argument("--results", type=Path, default=HERE / "results")
    a = p.parse_args()
    python = vllm_python()
    rows: list[dict[str, Any]] = []
    for model in trained_models():
        if "quantization_config" in json.loads((model / "config.json").read_text()):
            continue
        print(model.name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows += judge(python, model, plans(model, Path(folder), a.keep, a.criteria), a.windows)
    show(rows)
    write_csv(a.results / "layers.csv", rows)
    plot(rows, a.results / "layers.png")


if __name__ == "__main__":
    main()
