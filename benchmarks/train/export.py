"""Write a training checkpoint as a Hugging Face folder: BF16 safetensors, config, tokenizer.

python -m benchmarks.train.export RUN/model.pt TOKENIZER OUT [--shards N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.train.model import DEEPSEEK, QWEN, Decoder, Shape

DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def tensors(model: Decoder) -> dict[str, Tensor]:
    """Hugging Face names to tensors; experts one by one, as Qwen and DeepSeek publish them."""
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
            out[f"{at}.self_attn.{name if name.endswith('weight') else name + '.weight'}"] = value
        mlp = block.mlp
        if not hasattr(mlp, "wg"):
            for name, value in mlp.named_parameters():
                out[f"{at}.mlp.{name}.weight"] = value
            continue
        out[f"{at}.mlp.gate.weight"] = mlp.gate
        if mlp.shared is not None:
            out[f"{at}.mlp.gate.e_score_correction_bias"] = mlp.bias
            for name, value in mlp.shared.named_parameters():
                out[f"{at}.mlp.shared_experts.{name}.weight"] = value
        for e in range(mlp.s.experts):
            for name, stack in (("gate_proj", mlp.wg), ("up_proj", mlp.wu), ("down_proj", mlp.wd)):
                out[f"{at}.mlp.experts.{e}.{name}.weight"] = stack[e]
    return {
        name: value.detach().to(torch.float32 if "correction_bias" in name else torch.bfloat16).contiguous()
        for name, value in out.items()
    }


def config(s: Shape) -> dict[str, object]:
    common: dict[str, object] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": s.width,
        "initializer_range": 0.02,
        "intermediate_size": s.dense_width,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": s.expert_width,
        "norm_topk_prob": True,
        "num_attention_heads": s.heads,
        "num_experts_per_tok": s.used,
        "num_hidden_layers": s.layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": s.theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": s.vocabulary,
    }
    if s.kind == "qwen":
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            **common,
            "bos_token_id": None,
            "eos_token_id": 3071,
            "pad_token_id": 3069,
            "decoder_sparse_step": 1,
            "head_dim": s.head,
            "mlp_only_layers": [],
            "num_experts": s.experts,
            "num_key_value_heads": s.kv_heads,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "use_sliding_window": False,
        }
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **common,
        "bos_token_id": 3068,
        "eos_token_id": 3069,
        "first_k_dense_replace": s.dense,
        "kv_lora_rank": 256,
        "moe_layer_freq": 1,
        "n_group": s.groups,
        "n_routed_experts": s.experts,
        "n_shared_experts": 1,
        "num_key_value_heads": s.heads,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 256,
        "qk_nope_head_dim": s.head,
        "qk_rope_head_dim": s.rope,
        "rope_interleave": True,
        "rope_scaling": None,
        "routed_scaling_factor": s.scale,
        "scoring_func": "sigmoid",
        "topk_group": s.groups_used,
        "topk_method": "noaux_tc",
        "v_head_dim": s.head,
    }


def write_safetensors(path: Path, values: dict[str, Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, value in values.items():
        size = value.numel() * value.element_size()
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".tmp")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in values.values():
            file.write(value.flatten().view(torch.uint8).numpy().tobytes())
    part.replace(path)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("tokenizer", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--shards", type=int, default=1)
    a = p.parse_args()
    state = torch.load(a.checkpoint, weights_only=True)
    shape = QWEN if state["kind"] == "qwen" else DEEPSEEK
    model = Decoder(shape)
    model.load_state_dict(state["model"])
    values = tensors(model)
    a.out.mkdir(parents=True, exist_ok=True)
    for old in a.out.glob("model*.safetensors*"):
        old.unlink()
    names = list(values)
    if a.shards == 1:
        write_safetensors(a.out / "model.safetensors", values)
    else:
        table: dict[str, str] = {}
        size = -(-len(names) // a.shards)
        for i in range(a.shards):
            file = f"model-{i + 1:05d}-of-{a.shards:05d}.safetensors"
            part = {name: values[name] for name in names[i * size : (i + 1) * size]}
            write_safetensors(a.out / file, part)
            table |= dict.fromkeys(part, file)
        total = sum(v.numel() * v.element_size() for v in values.values())
        index = {"metadata": {"total_size": total}, "weight_map": table}
        (a.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    settings = config(shape)
    (a.out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    generation = {"bos_token_id": settings["bos_token_id"], "eos_token_id": settings["eos_token_id"]}
    (a.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(a.tokenizer / name, a.out / name)
    print(a.out, "step", state["step"], "tokens", state["tokens"])


if __name__ == "__main__":
    main()
