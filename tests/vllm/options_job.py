"""Options that hold experts otherwise, against transformers on the same weights; prints a JSON line a case.

usage: options_job.py FOLDER. FOLDER holds cases.json; see test_vllm_options.py. Runs in vLLM's environment.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from collab_vllm.experts.host.ggml_cpu import LIBRARIES, ggml_cpu
from in_process import close, engine, prompt_logprobs
from safetensors.torch import load_file, save_file
from small_models.tiny_families import pruned as pruned_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from vllm import LLM, SamplingParams

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.plans.plan_file import read_plan

GREEDY = 16
GGML = os.environ.get(LIBRARIES.variable, "")
PROMPTS = [list(range(100, 160)), [7, 200, 31, 90, 12] * 9]


def main(folder: Path) -> None:
    for case in json.loads((folder / "cases.json").read_text()):
        try:
            found = run(case)
        except Exception:
            found = {"error": traceback.format_exc()[-3000:]}
        print("RESULT " + json.dumps({"case": case["name"], **found}), flush=True)


def run(case: dict[str, Any]) -> dict[str, Any]:
    os.environ[LIBRARIES.variable] = GGML if case["ggml"] else ""
    ggml_cpu.cache_clear()
    pruned = Path(case["pruned"])
    small = load(pruned) if pruned.exists() else by_layer(case)
    plain = reference(small)
    artifact = case["options"].get("artifact")
    expected = plain
    if artifact is not None:
        dequantized = pruned.with_name(f"{pruned.name}-{case['name']}")
        write_dequantized(pruned, Path(artifact), dequantized)
        expected = reference(load(dequantized))
    more = draft(case["draft"]) if "draft" in case else {}
    if "placement" in case["options"]:
        more = {"disable_log_stats": False, "enable_prefix_caching": False}
    if "ranks" in case:
        cores = sorted(os.sched_getaffinity(0))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}|{cores[-1]}"  # vLLM would give each a NUMA node
        more = {"tensor_parallel_size": case["ranks"]}
    llm = engine(Path(case["model"]), case["options"], skip_tokenizer_init=True, enforce_eager=case["eager"], **more)
    os.environ.pop("VLLM_CPU_OMP_THREADS_BIND", None)
    ours = prompt_logprobs(llm, PROMPTS)
    again = {}
    if "placement" in case["options"]:
        wanted = SamplingParams(max_tokens=GREEDY, temperature=0, detokenize=False, ignore_eos=True)
        llm.generate([{"prompt_token_ids": PROMPTS[0]}], wanted, use_tqdm=False)
        once_more = prompt_logprobs(llm, PROMPTS)
        told = {m.name: m.value for m in llm.get_metrics() if m.name.startswith("vllm:collab_")}
        again = {"again": apart(once_more, ours), "metrics": told}
    if "draft" in case:
        return {
            "difference": apart(ours, expected), "from_plain": 0.0,
            "expert_bytes": llm.apply_model(count_bytes)[0], "hot": llm.apply_model(hot_experts)[0],
            "accepted": accepted(llm, small),
        }  # fmt: skip
    routing = llm.collective_rpc("collab_routing")[0]["layers"] if case["options"].get("stats") else {}
    parameters, hot = llm.apply_model(count_bytes)[0], llm.apply_model(hot_experts)[0]
    close(llm)
    return {
        "difference": apart(ours, expected),
        "from_plain": apart(expected, plain),
        "routing": routing,
        "tokens": sum(map(len, PROMPTS)),
        "expert_bytes": parameters,
        "hot": hot,
        **again,
    }


def draft(model: str) -> dict[str, Any]:
    """An engine's options for speculative decoding with that draft model."""
    speculative = {"model": model, "num_speculative_tokens": 3, "method": "draft_model"}
    return {"speculative_config": speculative, "disable_log_stats": False}


def accepted(llm: LLM, model: PreTrainedModel) -> float:
    """Tokens of the draft model that were taken; ours must be those of transformers without one."""
    wanted = SamplingParams(max_tokens=GREEDY, temperature=0, detokenize=False, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], wanted, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        with torch.no_grad():
            whole = model.generate(
                torch.tensor([prompt]), max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False
            )
        ours, theirs = list(output.outputs[0].token_ids), whole[0, len(prompt) :].tolist()
        assert ours == theirs, f"{ours}, transformers has {theirs}"
    metrics = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    close(llm)
    return metrics["vllm:spec_decode_num_accepted_tokens"]


def count_bytes(model: torch.nn.Module) -> int:
    """Of all parameters of routed experts."""
    return sum(p.nbytes for name, p in model.named_parameters() if ".routed_experts." in name)


def hot_experts(model: torch.nn.Module) -> list[list[int]]:
    """Of each layer that has tiers."""
    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    return [list(method.hot) for method in methods if getattr(method, "hot", None) is not None]


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


def by_layer(case: dict[str, Any]) -> PreTrainedModel:
    """Of a plan that no folder holds: layers with other numbers of experts."""
    plan = read_plan(Path(case["options"]["plan"]))
    return pruned_model(load(Path(case["model"])), dict(plan.pruning.kept), plan.activation.used)


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def reference(model: PreTrainedModel) -> list[list[float]]:
    found = []
    with torch.no_grad():
        for prompt in PROMPTS:
            log_p = torch.log_softmax(model(torch.tensor([prompt])).logits[0], -1)
            found.append([float(log_p[i, token]) for i, token in enumerate(prompt[1:])])
    return found


def apart(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


if __name__ == "__main__":  # ranks import this file
    main(Path(sys.argv[1]))
