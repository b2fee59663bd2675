"""Write a training checkpoint as a Hugging Face folder: safetensors, config, tokenizer.

python -m benchmarks.train.export RUN/model.pt TOKENIZER OUT [--shards N] [--fp8]

Weights are BF16; with --fp8, the matrices that DeepSeek and Qwen publish as FP8 are E4M3 with a scale for each block of
128 by 128, and only embedding, output, routers, norms and biases stay BF16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.train.config import BLOCK, config
from benchmarks.train.experts import Experts
from benchmarks.train.model import Decoder
from benchmarks.train.shapes import SHAPES

METADATA = {"format": "pt"}
E4M3_MAX = 448.0


def tensors(model: Decoder) -> dict[str, Tensor]:
    """Hugging Face names to tensors; experts one by one, as all these families publish them."""
    out = {
        "model.embed_tokens.weight": model.embed_tokens,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.lm_head,
    }
    for index, block in enumerate(model.layers):
        at = f"model.layers.{index}"
        out[f"{at}.input_layernorm.weight"] = block.input_layernorm.weight
        out[f"{at}.post_attention_layernorm.weight"] = block.post_attention_layernorm.weight
        for name, value in block.self_attn.named_parameters():
            out[f"{at}.self_attn.{attention_name(name)}"] = value
        if isinstance(block.mlp, Experts):
            folder = "block_sparse_moe" if block.mlp.s.family == "mixtral" else "mlp"
            out |= {f"{at}.{folder}.{name}": value for name, value in experts(block.mlp).items()}
        else:
            out |= {f"{at}.mlp.{name}.weight": value for name, value in block.mlp.named_parameters()}
    return {
        name: value.detach().to(torch.float32 if "correction_bias" in name else torch.bfloat16).contiguous()
        for name, value in out.items()
    }


def attention_name(name: str) -> str:
    """q_proj -> q_proj.weight, q_bias -> q_proj.bias; a norm's has its end."""
    if name.endswith("_bias"):
        return name.removesuffix("_bias") + "_proj.bias"
    return name if name.endswith(".weight") else name + ".weight"


def experts(mlp: Experts) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {"gate.weight": mlp.gate}
    if mlp.s.family == "deepseek":
        out["gate.e_score_correction_bias"] = mlp.bias
    if mlp.shared_gate is not None:
        out["shared_expert_gate.weight"] = mlp.shared_gate
    if mlp.shared is not None:
        folder = "shared_experts" if mlp.s.family == "deepseek" else "shared_expert"
        out |= {f"{folder}.{name}.weight": value for name, value in mlp.shared.named_parameters()}
    gate, up = mlp.gate_up.chunk(2, 1)
    names = ("w1", "w3", "w2") if mlp.s.family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for e in range(mlp.s.experts):
        for name, stack in zip(names, (gate, up, mlp.down), strict=True):
            out[f"experts.{e}.{name}.weight"] = stack[e]
    return out


def as_fp8(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projections as F8_E4M3, each beside its ``weight_scale_inv`` f32[rows / 128, columns / 128]."""
    out: dict[str, Tensor] = {}
    for name, value in values.items():
        if not name.endswith("_proj.weight"):
            out[name] = value
            continue
        rows, columns = (n // BLOCK for n in value.shape)
        blocks = value.float().view(rows, BLOCK, columns, BLOCK)
        scale = blocks.abs().amax((1, 3), keepdim=True).clamp_min(1e-12) / E4M3_MAX
        out[name] = (blocks / scale).view(value.shape).to(torch.float8_e4m3fn)
        out[f"{name}_scale_inv"] = scale.view(rows, columns)
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("tokenizer", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--shards", type=int, default=1)
    p.add_argument("--fp8", action="store_true")
    a = p.parse_args()
    state = torch.load(a.checkpoint, weights_only=True)
    shape = SHAPES[state["shape"]]
    model = Decoder(shape)
    model.load_state_dict(state["model"])
    values = as_fp8(tensors(model)) if a.fp8 else tensors(model)
    a.out.mkdir(parents=True, exist_ok=True)
    for old in a.out.glob("model*.safetensors*"):
        old.unlink()
    names = list(values)
    if a.shards == 1:
        save_file(values, a.out / "model.safetensors", METADATA)
    else:
        table: dict[str, str] = {}
        size = -(-len(names) // a.shards)
        for i in range(a.shards):
            file = f"model-{i + 1:05d}-of-{a.shards:05d}.safetensors"
            part = {name: values[name] for name in names[i * size : (i + 1) * size]}
            save_file(part, a.out / file, METADATA)
            table |= dict.fromkeys(part, file)
        total = sum(v.numel() * v.element_size() for v in values.values())
        index = {"metadata": {"total_size": total}, "weight_map": table}
        (a.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    settings = config(shape, a.fp8)
    (a.out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    generation = {"bos_token_id": settings["bos_token_id"], "eos_token_id": settings["eos_token_id"]}
    (a.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shutil.copy(a.tokenizer / "tokenizer.json", a.out / "tokenizer.json")
    tokenizer = json.loads((a.tokenizer / "tokenizer_config.json").read_text())
    tokenizer["model_max_length"] = settings["max_position_embeddings"]
    (a.out / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")
    print(a.out, "step", state["step"], "tokens", state["tokens"])


if __name__ == "__main__":
    main()
