"""What differs between families of Mixture-of-Experts checkpoints, as vLLM's model classes read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class Family:
    """``classes``: names in config.json's ``architectures``. ``count``: config attribute of the experts.

    ``blocks``: modules of a decoder layer that hold experts and router. ``router``: tensors of such a block
    with a row an expert. ``interleaved_rope``: rotates neighbouring pairs, not halves.
    """

    classes: tuple[str, ...]
    count: str
    blocks: tuple[str, ...] = ("mlp",)
    router: tuple[str, ...] = ("gate.weight",)
    interleaved_rope: bool = False


_BIASED = ("gate.weight", "gate.e_score_correction_bias")

FAMILIES = (
    Family(("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM"), "num_experts"),
    Family(("MixtralForCausalLM",), "num_local_experts", ("block_sparse_moe", "mlp")),
    # Kimi-K2's class is DeepSeek-V3's.
    Family(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), "n_routed_experts", router=_BIASED, interleaved_rope=True
    ),
    Family(("Glm4MoeForCausalLM",), "n_routed_experts", router=_BIASED),
    Family(("GptOssForCausalLM",), "num_local_experts", router=("router.weight", "router.bias")),
)


def family_of(classes: Sequence[str], model: str) -> Family:
    """Return the family of a config's ``architectures``; CollabError naming those that are known."""
    for family in FAMILIES:
        if set(classes) & set(family.classes):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.classes)
    raise CollabError(f"{model} is a {', '.join(classes)}, which load format collab cannot prune; it prunes {known}")
