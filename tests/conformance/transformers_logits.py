"""Run in an environment with torch and transformers: python transformers_logits.py FOLDER GGUF OUT.npz TOKENS...

Writes what transformers computes from the checkpoint FOLDER and what the reference computes from its GGUF.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from collab_conformance.reference.run import Reference
from transformers import AutoModelForCausalLM


def main(folder: str, gguf: str, out: str, *ids: str) -> None:
    tokens = [int(i) for i in ids]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.inference_mode():
        original = model(torch.tensor([tokens])).logits[0].double().numpy()
    found = Reference(Path(gguf)).run(tokens)
    layers = {
        f"{part}.{n}": getattr(r, part) for n, r in found.routing.items() for part in ("ids", "weights", "margins")
    }
    np.savez(out, original=original, logits=found.logits, **layers)


main(*sys.argv[1:])
