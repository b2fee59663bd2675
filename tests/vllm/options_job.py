"""Options that hold experts otherwise, against transformers on the same weights; prints a JSON line a case.

usage: options_job.py FOLDER. FOLDER holds cases.json; see test_vllm_options.py. Runs in vLLM's environment.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_process import close, engine, prompt_logprobs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from collab_plugin.checkpoint.gguf import open_gguf

PROMPTS = [list(range(100, 160)), [7, 200, 31, 90, 12] * 9]


def main(folder: Path) -> None:
    for case in json.loads((folder / "cases.json").read_text()):
        try:
            found = run(case)
        except Exception:
            found = {"error": traceback.format_exc()[-3000:]}
        print("RESULT " + json.dumps({"case": case["name"], **found}), flush=True)


def run(case: dict[str, Any]) -> dict[str, Any]:
    pruned = Path(case["pruned"])
    plain = reference(pruned)
    artifact = case["options"].get("artifact")
    expected = plain
    if artifact is not None:
        dequantized = pruned.with_name(f"{pruned.name}-{case['name']}")
        write_dequantized(pruned, Path(artifact), dequantized)
        expected = reference(dequantized)
    llm = engine(Path(case["model"]), case["options"], skip_tokenizer_init=True, enforce_eager=case["eager"])
    ours = prompt_logprobs(llm, PROMPTS)
    routing = llm.collective_rpc("collab_routing")[0]["layers"] if case["options"].get("stats") else {}
    parameters = llm.apply_model(count_bytes)[0]
    close(llm)
    return {
        "difference": apart(ours, expected),
        "from_plain": apart(expected, plain),
        "routing": routing,
        "tokens": sum(map(len, PROMPTS)),
        "expert_bytes": parameters,
    }


def count_bytes(model: torch.nn.Module) -> int:
    """Of all parameters of routed experts."""
    return sum(p.nbytes for name, p in model.named_parameters() if ".routed_experts." in name)


def write_dequantized(pruned: Path, artifact: Path, out: Path) -> None:
    """A copy of the folder ``pruned`` with the experts of ``artifact`` as float32."""
    gguf = open_gguf(artifact)
    tensors = {name: t.to(torch.float32) for name, t in load_file(pruned / "model.safetensors").items()}
    for name in tensors:
        if ".mlp.experts." in name:
            _, _, layer, _, _, expert, part, _ = name.split(".")
            values = gguf.read(f"blk.{layer}.ffn_{part.split('_')[0]}_exps.weight", expert=int(expert))
            tensors[name] = torch.from_numpy(np.array(values))
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_bytes((pruned / "config.json").read_bytes())


def reference(folder: Path) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for prompt in PROMPTS:
            log_p = torch.log_softmax(model(torch.tensor([prompt])).logits[0], -1)
            found.append([float(log_p[i, token]) for i, token in enumerate(prompt[1:])])
    return found


def apart(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


main(Path(sys.argv[1]))
