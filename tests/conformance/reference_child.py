"""Run where torch is: python reference_child.py. What the reference, and transformers, compute.

A line of standard input is a job: "gguf", "tokens", "scales", "folder" (the checkpoint for transformers, null for the
reference alone) and "out", the .npz file to write. Answered by a line: null, or what went wrong.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from collab_conformance.reference.run_reference import ReferenceModel
from numpy.typing import NDArray


def transformers_arrays(folder: str, tokens: list[int]) -> dict[str, NDArray[np.float64]]:
    """Logits in float64, and each router's logits, weights and ids in order."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    seen: list[tuple[torch.Tensor, ...]] = []
    for module in model.modules():
        if type(module).__name__.endswith("Router"):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].double().numpy()
    names = ("router", "weights", "ids")
    parts = {
        f"original.{n}.{name}": part.numpy()
        for n, output in enumerate(seen)
        for name, part in zip(names, output, strict=True)
    }
    return {"original": logits, **parts}


def write(job: dict[str, Any]) -> None:
    found = ReferenceModel(Path(job["gguf"]), job["scales"]).run(job["tokens"])
    arrays = {"logits": found.logits, "layers": np.array(list(found.routing))}
    for number, layer in enumerate(found.routing.values()):
        arrays |= {f"{number}.{name}": getattr(layer, name) for name in ("ids", "weights", "margins")}
    if job["folder"]:
        arrays |= transformers_arrays(job["folder"], job["tokens"])
    np.savez(job["out"], **arrays)


for line in sys.stdin:
    try:
        write(json.loads(line))
        error = None
    except Exception:
        error = traceback.format_exc()
    print(json.dumps(error), flush=True)
