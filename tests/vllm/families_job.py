"""Prune tiny models of every family in vLLM and in transformers; print how far apart they are, as JSON lines.

Runs in vLLM's environment, in shared_job.py.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hand_plans import plan_of, save_plan
from in_process import close, engine, prompt_logprobs
from safetensors.torch import load_file, save_file
from small_models.tiny_families import EXPERTS, FAMILIES, LAYERS, make, pruned, save
from transformers import PreTrainedModel

CASES = [(name, "varied") for name in FAMILIES]
CASES += [("qwen3-moe", "fused"), ("deepseek-v3", "disband"), ("glm4-moe", "mtp")]
KEPT, USED = (3, 1, 2, 7, 4, 6), 3  # three of each half, for routers with two groups; not in order
VARIED = {
    # By number of groups and of layers with experts: ids in the order of KEPT and after; six on average, or seven.
    (1, 3): ((3, 1, 2, 7, 4), (1, 2, 7, 4, 6, 3, 0), (5, 2, 3, 6, 4, 0)),
    (1, 2): ((3, 1, 2, 7, 4), (1, 2, 7, 4, 6, 3, 0)),
    (2, 2): (KEPT, (3, 1, 2, 0, 7, 4, 6, 5)),
}
PROMPTS = [list(range(3, 60)), [7, 200, 31, 90, 12] * 9]


def main(folder: Path) -> None:
    for name, how in CASES:
        label = f"{name}-{how}"
        try:
            found = compare(folder / label, name, how)
        except Exception:
            found = {"error": traceback.format_exc()[-3000:]}
        print("FAMILY " + json.dumps({"case": label, **found}), flush=True)


def compare(folder: Path, name: str, how: str) -> dict[str, Any]:
    model = make(name)
    save(model, name, folder, fused=how == "fused")
    mtp = add_prediction_layer(folder) if how == "mtp" else 0
    kept = kept_of(name, how)
    groups = {"tiny.expert_group_count": None, "tiny.expert_group_used_count": None} if how == "disband" else {}
    routers = {
        f"blk.{key.split('.')[2]}.ffn_gate_inp.{key.rpartition('.')[2]}": tensor.float().numpy()
        for key, tensor in model.state_dict().items()
        if key.endswith((".gate.weight", ".router.weight", ".router.bias"))
    }
    plan = save_plan(folder / "plan.json", plan_of(routers, kept, experts=mean(kept), used=USED, metadata=groups))
    latent = {"attention_backend": "CPU_MLA"} if hasattr(model.config, "kv_lora_rank") else {}
    llm = engine(folder, {"plan": str(plan)}, skip_tokenizer_init=True, **latent)
    ours = prompt_logprobs(llm, PROMPTS)
    held = expert_rows(llm)
    close(llm)
    expected = reference(pruned(model, kept, USED, disband=how == "disband"))
    whole = reference(model)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    dropped = sum(
        t.nbytes * (EXPERTS - len(kept[int(k.split(".")[2])])) // EXPERTS
        for k, t in model.state_dict().items()
        if ".mlp." in k and t.dim() and t.shape[0] == EXPERTS
    )
    return {
        "difference": apart(ours, expected),
        "from_whole": apart(expected, whole),
        "held": held,
        "stored": stored,
        "pruned_bytes": dropped + mtp,
        "kept": sorted({len(ids) for ids in kept.values()}),
    }


def kept_of(name: str, how: str) -> dict[int, tuple[int, ...]]:
    """What the case keeps of each layer with experts."""
    tiny, layers = FAMILIES[name], range(FAMILIES[name].dense, LAYERS)
    if how == "varied":
        return dict(zip(layers, VARIED[tiny.groups, len(layers)], strict=True))
    return {n: KEPT[n:] + KEPT[:n] if tiny.groups == 1 else KEPT for n in layers}


def mean(kept: dict[int, tuple[int, ...]]) -> int:
    return sum(map(len, kept.values())) // len(kept)


def add_prediction_layer(folder: Path) -> int:
    """Store the last layer once more, as one that predicts a further token; returns its bytes."""
    extra = {}
    for path in folder.glob("*.safetensors"):
        for key, tensor in load_file(path).items():
            if key.startswith(f"model.layers.{LAYERS - 1}."):
                extra[key.replace(f".{LAYERS - 1}.", f".{LAYERS}.", 1)] = tensor
    save_file(extra, folder / "mtp.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    return sum(tensor.nbytes for tensor in extra.values())


@torch.no_grad()
def reference(model: PreTrainedModel) -> list[list[float]]:
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        logp = model(ids).logits[0].log_softmax(-1)
        found.append(logp[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist())
    return found


def apart(left: list[list[float]], right: list[list[float]]) -> float:
    return float(max(np.abs(np.subtract(a, b)).max() for a, b in zip(left, right, strict=True)))


def expert_rows(llm: Any) -> list[int]:
    """Axis 0 of every parameter of routed experts that has one: what vLLM allocated."""

    def rows(model: torch.nn.Module) -> list[int]:
        return sorted({int(p.shape[0]) for n, p in model.named_parameters() if "routed_experts" in n and p.dim() > 1})

    return rows(llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.get_model())
