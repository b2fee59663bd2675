"""Make tiny random models through transformers and compute their logits, whole and pruned.

python families_job.py JOB.json, in an environment with transformers. The job has "folder" and "cases": name ->
{"config", "keys", "extra", "dense", "fused"} as `small_models.tiny_families.Tiny` takes them, and "left_out", keys to
take out of config.json. Each case's folder gets the checkpoint in model/, and original.npy and pruned.npy:
float32[tokens, vocabulary]; a case with "whole" is not pruned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models.tiny_families import LAYERS, Tiny, make_tiny, pruned, save_tiny
from transformers import PreTrainedModel


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    return np.asarray(model(torch.tensor([tokens])).logits[0].numpy())


def leave_out(path: Path, keys: list[str]) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))


def one(folder: Path, case: dict[str, Any], job: dict[str, Any]) -> None:
    tiny = Tiny(case["config"], case.get("keys", {}), case.get("extra", {}), case.get("dense", 0))
    model = make_tiny(tiny, vocab_size=job["vocabulary"])
    save_tiny(model, tiny, folder / "model", fused=case.get("fused", False))
    leave_out(folder / "model" / "config.json", case.get("left_out", []))
    np.save(folder / "original.npy", logits(model, job["tokens"]))
    if case.get("whole"):
        return
    kept = {layer: tuple(job["kept"]) for layer in range(tiny.dense, LAYERS)}
    np.save(folder / "pruned.npy", logits(pruned(model, kept, job["used"]), job["tokens"]))


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    for name, case in job["cases"].items():
        folder = Path(job["folder"]) / name
        folder.mkdir(parents=True)
        one(folder, case, job)


main(sys.argv[1])
