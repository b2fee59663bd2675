"""Mean KL divergence of pruned models from the whole one, by transformers; a child of run.py beside it.

usage: measure.py MODEL WINDOWS TEXT...; stdin is a JSON list of plans, the last line of stdout a JSON list of
figures. Runs in vLLM's environment, with tests on the path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_models.tiny_families import pruned
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from collab_plugin.plans.plan_file import read_plan

CTX = 256


def tokens(model: Path, texts: list[Path], windows: int) -> torch.Tensor:
    """i64[windows of all texts, CTX]."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer(text.read_text(), add_special_tokens=False).input_ids[: windows * CTX] for text in texts]
    return torch.tensor([each[at : at + CTX] for each in ids for at in range(0, len(each) - CTX + 1, CTX)])


@torch.no_grad()
def log_p(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """f64[windows, CTX / 2, V]: positions that have half a window before them."""
    return model(batch).logits[:, CTX // 2 :].double().log_softmax(-1)


def figures(
    model: PreTrainedModel, whole: torch.Tensor, batch: torch.Tensor, plans: list[str]
) -> Iterator[dict[str, Any]]:
    for path in plans:
        plan = read_plan(Path(path))
        small = log_p(pruned(model, dict(plan.pruning.kept), plan.activation.used), batch)
        kld = (whole.exp() * (whole - small)).sum(-1).mean(-1)  # a value a window: positions of one are not independent
        experts = " ".join(str(len(ids)) for _, ids in sorted(plan.pruning.kept.items()))
        yield {"mean_kld": float(kld.mean()), "stderr": float(kld.std() / len(kld) ** 0.5), "experts": experts}


def main(folder: Path, windows: int, texts: list[Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    batch = tokens(folder, texts, windows)
    print(json.dumps(list(figures(model, log_p(model, batch), batch, json.load(sys.stdin)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [Path(text) for text in sys.argv[3:]])
