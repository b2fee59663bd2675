"""Start vLLM with what cannot work, up to its configuration; print what it says, as JSON lines.

``folder`` holds plans qwen.json and deepseek.json; ``models`` are the trained ones, ``other`` is a copy of
tiny-qwen3moe trained from another seed. Runs in vLLM's environment, in shared_job.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import collab_vllm
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Calibration
from collab_plugin.plans.plan_file import read_plan, write_plan


def main(folder: Path, models: Path, other: Path) -> None:
    qwen, deepseek, dense = models / "tiny-qwen3moe", models / "tiny-deepseek-v3", folder / "dense"
    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(small).save_pretrained(dense)
    plan, theirs = {"plan": str(folder / "qwen.json")}, {"plan": str(folder / "deepseek.json")}
    (folder / "edited.json").write_text((folder / "qwen.json").read_text().replace('"used": 3', '"used": 4'))
    itself = {"model": str(qwen), "method": "draft_model", "num_speculative_tokens": 1}
    (folder / "calibrated").mkdir()
    made = read_plan(folder / "qwen.json")
    calibration = Calibration("0" * 64, 1, (), "", False, 0, 0.0, "", "stats.gguf")
    write_plan(folder / "calibrated" / "plan.json", dataclasses.replace(made, calibration=calibration))
    (folder / "calibrated" / "stats.gguf").write_bytes(b"GGUF\3\0\0\0")
    calibrated = {"plan": str(folder / "calibrated" / "plan.json")}
    varied = {"plan": str(folder / "varied.json")}
    ranks: dict[str, Any] = {"enable_expert_parallel": True}
    cases: dict[str, tuple[Path, Any, dict[str, Any]]] = {
        "fits": (qwen, plan, {}),
        "unknown option": (qwen, plan | {"keep": 4}, {}),
        "no options": (qwen, {}, {}),
        "missing file": (qwen, {"plan": str(folder / "nowhere.json")}, {}),
        "edited plan": (qwen, {"plan": str(folder / "edited.json")}, {}),
        "no path": (qwen, {"plan": 4}, {}),
        "no flag": (qwen, plan | {"strict": "yes"}, {}),
        "no count": (qwen, plan | {"hot": 0}, {}),
        "unknown policy": (qwen, plan | {"hot": 2, "policy": "coldest"}, {}),
        "policy alone": (qwen, plan | {"policy": "most-selected"}, {}),
        "two choosers": (qwen, plan | {"hot": 2, "placement": "placement.json"}, {}),
        "no placement": (qwen, plan | {"placement": str(folder / "nowhere.json")}, {}),
        "misses alone": (qwen, plan | {"misses": "copy"}, {}),
        "unknown misses": (qwen, plan | {"hot": 2, "misses": "never"}, {}),
        "no interval": (qwen, plan | {"hot": 2, "interval": 0}, {}),
        "truncated stats": (qwen, calibrated | {"hot": 2}, {}),
        "too many hot": (qwen, plan | {"hot": 25}, {}),
        "artifact without a plan": (qwen, {"artifact": "out.gguf"}, {}),
        "no artifact": (qwen, plan | {"artifact": str(folder / "nowhere.gguf")}, {}),
        "two extensions": (qwen, plan | {"stats": True}, {"worker_extension_cls": "mine.Worker"}),
        "another family's plan": (qwen, theirs, {}),
        "another seed": (other, plan, {}),
        "another seed, not strict": (other, plan | {"strict": False}, {}),
        "own prediction layers": (qwen, plan, {"speculative_config": itself}),
        "dense model": (dense, plan, {}),
        "varied": (qwen, varied, {}),
        "artifact of a varied plan": (qwen, varied | {"artifact": "out.gguf"}, {}),
        "too many hot for one layer": (qwen, varied | {"hot": 21}, {}),
        "one layer's experts over ranks": (qwen, varied, ranks | {"data_parallel_size": 8}),
        "experts over ranks": (qwen, plan, ranks | {"data_parallel_size": 5}),
        "expert parallel on a processor": (qwen, plan, ranks | {"data_parallel_size": 4}),
        "wrong rotation": (deepseek, theirs, {"compilation_config": {"custom_ops": ["+rotary_embedding"]}}),
    }
    for name, (model, options, more) in cases.items():
        print("MISTAKE " + json.dumps({"case": name, "said": said(model, options, more)}), flush=True)
    once = EngineArgs.create_engine_config
    loader = _LOAD_FORMAT_TO_MODEL_LOADER["collab"]
    collab_vllm.register()
    same = once is EngineArgs.create_engine_config and loader is _LOAD_FORMAT_TO_MODEL_LOADER["collab"]
    print("MISTAKE " + json.dumps({"case": "registered twice", "said": str(same)}), flush=True)


def said(model: Path, options: Any, more: dict[str, Any]) -> str:
    """The error's text, or what became of the configuration."""
    try:
        config = EngineArgs(
            str(model), load_format="collab", model_loader_extra_config=options, dtype="float32", **more
        ).create_engine_config()
    except CollabError as error:
        return f"CollabError: {error}"
    except Exception as error:  # whatever else it is, the test shows it
        return f"{type(error).__name__}: {error}"
    hf = config.model_config.hf_config
    return f"{hf.num_experts} experts, {hf.num_experts_per_tok} used, {config.model_config.get_num_experts()} cached"
