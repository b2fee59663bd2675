"""Log-probabilities of a pruned checkpoint by transformers; runs in vLLM's environment.

usage: pruned_reference.py [MODEL PLAN WINDOWS OUT]... WINDOWS is a .npy of tokens i64[n, ctx]; OUT gets
f32[2, n, ctx - 1, V]: log p of the next token, after pruning and before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from small_models.tiny_families import pruned
from transformers import AutoModelForCausalLM, PreTrainedModel

from collab_plugin.plans.plan_file import read_plan


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, windows: np.ndarray) -> np.ndarray:
    logits = model(torch.from_numpy(windows)).logits[:, :-1]
    return logits.float().log_softmax(-1).numpy()


def main(folder: Path, plan_path: Path, windows_path: Path, out: Path) -> None:
    plan, windows = read_plan(plan_path), np.load(windows_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    small = pruned(model, dict(plan.pruning.kept), plan.activation.used)
    np.save(out, np.stack([log_probabilities(small, windows), log_probabilities(model, windows)]))


if __name__ == "__main__":
    paths = iter(map(Path, sys.argv[1:]))
    for files in zip(paths, paths, paths, paths, strict=True):
        main(*files)
