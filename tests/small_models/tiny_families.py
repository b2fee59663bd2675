"""Tiny random models of each family, made and pruned through transformers. Runs in vLLM's environment."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

EXPERTS, USED, LAYERS, WIDTH = 8, 4, 3, 128
_SMALL = {
    "vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "num_experts_per_tok": USED, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
_MLA = {
    "kv_lora_rank": 512, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "routed_scaling_factor": 1.5,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """``config``: transformers' class; ``extra``: keys that vLLM reads and transformers does not save."""

    config: str
    keys: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    dense: int = 0
    groups: int = 1


FAMILIES = {
    "qwen2-moe": Tiny(
        "Qwen2MoeConfig",
        {"num_experts": EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48,
         "norm_topk_prob": True},
    ),
    "qwen3-moe": Tiny(
        "Qwen3MoeConfig",
        {"num_experts": EXPERTS, "moe_intermediate_size": 32, "head_dim": 32, "norm_topk_prob": True},
    ),
    "olmoe": Tiny("OlmoeConfig", {"num_experts": EXPERTS, "norm_topk_prob": False}),
    "mixtral": Tiny("MixtralConfig", {"num_local_experts": EXPERTS, "head_dim": 32}),
    "deepseek-v2": Tiny(
        "DeepseekV2Config",
        {**_MLA, "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy", "norm_topk_prob": False},
        {"topk_method": "group_limited_greedy", "scoring_func": "softmax"}, 1, 2,
    ),
    "deepseek-v3": Tiny(
        "DeepseekV3Config",
        {**_MLA, "n_group": 2, "topk_group": 1, "norm_topk_prob": True},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}, 1, 2,
    ),
    "kimi-k2": Tiny(
        "DeepseekV3Config",
        {**_MLA, "n_group": 1, "topk_group": 1, "norm_topk_prob": True},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}, 1, 1,
    ),
    "glm4-moe": Tiny(
        "Glm4MoeConfig",
        {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "moe_intermediate_size": 32, "head_dim": 32,
         "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "use_qk_norm": True,
         "routed_scaling_factor": 1.5}, {}, 1,
    ),
    "gpt-oss": Tiny(
        "GptOssConfig",
        {"num_local_experts": EXPERTS, "head_dim": 32, "intermediate_size": 64, "sliding_window": 32,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0,
          "beta_slow": 1.0, "original_max_position_embeddings": 64, "truncate": False}},
    ),
}  # fmt: skip
# Of these the ones with as many rows as there are experts.
_ROW = re.compile(r"layers\.(\d+)\.mlp\.(?:gate\.)?moe_statics\.e_score_correction_bias$")  # a matrix of one row
_HASH_TABLE = re.compile(r"layers\.(\d+)\.mlp\.gate\.tid2eid$")
_BY_EXPERT = re.compile(
    r"layers\.(\d+)\.(?:\w+\.)?(?:experts|gate|router|input_linear|output_linear|e_score_correction_bias|expert_bias)\b"
)


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family ``name``."""
    return make_tiny(FAMILIES[name], seed)


def make_tiny(tiny: Tiny, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model with random weights, router biases included, which transformers leaves at zero; ``changes`` to its
    configuration."""
    kind = getattr(transformers, tiny.config)
    own = tiny.keys.get("text_config")
    small = {**_SMALL, **(tiny.keys if own is None else own), **changes}
    config = kind(**(small if own is None else {**tiny.keys, "text_config": small}))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    made = AutoModelForCausalLM if own is None else AutoModelForImageTextToText
    model = made.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor_name.endswith("e_score_correction_bias"):
                tensor.uniform_(-0.2, 0.2)
            elif "norm" in tensor_name or tensor_name.endswith(("router.scale", "per_expert_scale", "layer_scalar")):
                tensor.uniform_(0.5, 1.5)
            elif "sinks" in tensor_name or tensor_name.endswith("bias"):
                tensor.normal_(0, 0.2)
            elif tensor_name.endswith("tid2eid"):
                rows = [torch.randperm(EXPERTS)[: tensor.shape[1]] for _ in range(tensor.shape[0])]
                tensor.copy_(torch.stack(rows))
            elif tensor.is_floating_point() and "inv_freq" not in tensor_name and "embed_scale" not in tensor_name:
                tensor.normal_(0, 0.3 if tensor.dim() == 2 and tensor.shape[0] == EXPERTS else 0.15)
    return model


def save(model: PreTrainedModel, name: str, folder: Path, *, fused: bool = False) -> Path:
    """Write a checkpoint of the family ``name``."""
    return save_tiny(model, FAMILIES[name], folder, fused=fused)


def save_tiny(model: PreTrainedModel, tiny: Tiny, folder: Path, *, fused: bool = False) -> Path:
    """Write a checkpoint, per expert as transformers saves it, or fused as it holds it in memory."""
    model.save_pretrained(folder)
    if fused:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        save_file(
            {n: t.contiguous() for n, t in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"}
        )
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tiny.extra))
    return folder


def pruned(
    model: PreTrainedModel, kept: dict[int, tuple[int, ...]], used: int, *, disband: bool = False
) -> PreTrainedModel:
    """The same model with ``kept[layer]`` experts, of which a token uses ``used``; ``disband``: without groups.

    Layers with other numbers of experts are taken out of models that have these in every layer.
    """
    config: PretrainedConfig = copy.deepcopy(model.config)
    own = config.get_text_config()
    count = next(key for key in ("n_routed_experts", "num_local_experts", "num_experts") if hasattr(own, key))
    experts = getattr(own, count)
    for key in ("num_experts_per_tok", "top_k_experts"):
        if hasattr(own, key):
            setattr(own, key, used)
    if disband:
        own.n_group = own.topk_group = 1
    uniform = {}
    for number in {len(ids) for ids in kept.values()}:
        setattr(own, count, number)
        changed = copy.deepcopy(config)
        uniform[number] = type(model)._from_config(changed, dtype=torch.float32, attn_implementation="eager").eval()
    small = next(iter(uniform.values()))
    for layer, ids in kept.items():
        _layers(small)[layer] = _layers(uniform[len(ids)])[layer]
    state = model.state_dict()
    for key, tensor in state.items():
        found = _BY_EXPERT.search(key)
        if found and tensor.dim() and tensor.shape[0] == experts and int(found[1]) in kept:
            state[key] = tensor[list(kept[int(found[1])])]
        elif (vector := _ROW.search(key)) and int(vector[1]) in kept:
            state[key] = tensor[:, list(kept[int(vector[1])])]
        elif (table := _HASH_TABLE.search(key)) and int(table[1]) in kept:
            rows = [_rerouted(row, kept[int(table[1])], experts, used) for row in tensor.tolist()]
            state[key] = torch.tensor(rows, dtype=tensor.dtype)
    small.load_state_dict(state)
    return small


def _rerouted(row: list[int], kept: tuple[int, ...], experts: int, used: int) -> list[int]:
    """A token's experts by their new numbers: those kept first, then the ones that stand for those dropped, in turn."""
    dropped = [expert for expert in range(experts) if expert not in kept]
    found = [kept.index(expert) for expert in row if expert in kept]
    for expert in row:
        if expert not in kept:
            number = dropped.index(expert) % len(kept)
            while number in found:
                number = (number + 1) % len(kept)
            found.append(number)
    return found[:used]


def _layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder's layers, wherever the model has them."""
    named = dict(model.named_modules())
    found = next(m for name, m in named.items() if name.endswith("model.layers") and "vision" not in name)
    assert isinstance(found, torch.nn.ModuleList)
    return found
