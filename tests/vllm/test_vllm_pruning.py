"""What a plan means for each stored tensor; needs no vLLM."""

from __future__ import annotations

import pytest
from collab_vllm.selection.expert_selection import Part, Selection, part_of
from collab_vllm.selection.vllm_families import family_for_vllm

from collab_plugin.checkpoint.families.builtin_families import FAMILIES
from collab_plugin.errors import CollabError

SELECTION = Selection({1: (5, 0, 2), 2: (1, 2, 3)}, 3, 2, None, None)


def part(name: str, architecture: str) -> Part | None:
    return part_of(name, family_for_vllm([architecture], "model"), SELECTION)


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        ("model.layers.1.mlp.experts.5.up_proj.weight", "Qwen3MoeForCausalLM",
         "model.layers.1.mlp.experts.0.up_proj.weight"),
        ("model.layers.1.mlp.experts.2.up_proj.weight_scale_inv", "DeepseekV3ForCausalLM",
         "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"),
        ("model.layers.2.block_sparse_moe.experts.3.w1.weight", "MixtralForCausalLM",
         "model.layers.2.block_sparse_moe.experts.2.w1.weight"),
    ],
)  # fmt: skip
def test_kept_experts_are_renumbered(name: str, architecture: str, expected: str) -> None:
    assert part(name, architecture) == Part(expected)


def test_pruned_experts_are_left_out() -> None:
    assert part("model.layers.1.mlp.experts.1.up_proj.weight", "Qwen3MoeForCausalLM") is None
    assert part("model.layers.2.mlp.experts.0.up_proj.weight", "Qwen3MoeForCausalLM") is None


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("model.layers.1.mlp.gate.weight", "OlmoeForCausalLM"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "Glm4MoeForCausalLM"),
        ("model.layers.1.mlp.router.bias", "GptOssForCausalLM"),
        ("model.layers.1.mlp.experts.gate_up_proj_blocks", "GptOssForCausalLM"),
        ("model.layers.1.mlp.experts.down_proj", "Qwen3MoeForCausalLM"),
    ],
)
def test_router_rows_and_fused_experts_are_read_by_row(name: str, architecture: str) -> None:
    assert part(name, architecture) == Part(name, (5, 0, 2))


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",  # a dense layer
        "model.layers.0.mlp.gate.weight",  # a layer that the plan does not prune
        "model.layers.1.mlp.shared_experts.up_proj.weight",
        "model.layers.1.mlp.shared_expert_gate.weight",
        "model.layers.1.self_attn.q_proj.weight",
    ],
)
def test_everything_else_is_read_whole(name: str) -> None:
    for family in FAMILIES:
        assert part_of(name, family, SELECTION) == Part(name)


def test_unknown_families_are_refused() -> None:
    with pytest.raises(CollabError, match=r"JambaForCausalLM.*cannot prune it; it prunes .*Qwen2MoeForCausalLM"):
        family_for_vllm(["JambaForCausalLM"], "model")
