"""Options that do not fit the model, found before engines start and memory is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from collab_plugin.errors import CollabError
from collab_vllm.experts.gguf_blocks import PARTS, ArtifactBlocks
from collab_vllm.experts.host.ggml_cpu import ggml_cpu, how_computed
from collab_vllm.experts.hot import layers_to_check, tiers_of_layer
from collab_vllm.selection.loader_options import LoaderOptions

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from collab_plugin.plans.plan import Plan


def check_artifact(options: LoaderOptions, plan: Plan | None) -> None:
    """CollabError when the artifact is not the plan's, or not one that can be used."""
    if options.artifact is None or plan is None:
        return
    if "expert-count-by-layer" in plan.requires:
        raise CollabError(
            f'option "artifact": the plan keeps {plan.pruning.span} experts a layer, which no GGUF can hold; leave it '
            "out, experts then have the checkpoint's own type"
        )
    artifact = ArtifactBlocks(options.artifact, plan)
    for layer, found in artifact.layers.items():
        missing = [part for part in PARTS if part not in found]
        if missing:
            raise CollabError(f"{options.artifact} has no {missing[0]} matrices in layer {layer}")
    ggml_cpu()  # says which libraries cannot be used


def check_tiers(options: LoaderOptions, plan: Plan | None, vllm_config: VllmConfig, counts: Mapping[int, int]) -> None:
    """CollabError when hot experts cannot be chosen, the layers have fewer, or a kernel needs all at once.

    ``counts``: experts by layer; any layer will do where they are alike and no plan says more.
    """
    if not options.tiered:
        return
    if options.hot is not None and options.hot > min(counts.values()):
        raise CollabError(f'option "hot" is {options.hot}, the layers have {min(counts.values())} experts')
    used = vllm_config.model_config.hf_text_config.num_experts_per_tok
    for layer, experts in layers_to_check(options, counts).items():
        tiers_of_layer(options, plan, layer, experts, used)
    method = vllm_config.model_config.quantization
    if method is not None and options.artifact is None:
        raise CollabError(
            'options "hot" and "placement" are for unquantized checkpoints and artifacts, this one is quantized '
            f"({method})"
        )
    if ggml_cpu() is None and options.misses == "host":
        raise CollabError(f'option "misses" is "host", but there are {how_computed()}')
