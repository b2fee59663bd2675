"""Options that do not fit the model, found before engines start and memory is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab_plugin.errors import CollabError
from collab_vllm.artifact import PARTS, Artifact
from collab_vllm.hot import placement_policy
from collab_vllm.options import LoaderOptions

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from collab_plugin.plan import Plan


def check_artifact(options: LoaderOptions, plan: Plan | None) -> None:
    """CollabError when the artifact is not the plan's, or not one that can be used."""
    if options.artifact is None or plan is None:
        return
    if "expert-count-by-layer" in plan.requires:
        raise CollabError(
            f'option "artifact": the plan keeps {plan.pruning.span} experts a layer, which no GGUF can hold; leave it '
            "out, experts then have the checkpoint's own type"
        )
    artifact = Artifact(options.artifact, plan)
    for layer, found in artifact.layers.items():
        missing = [part for part in PARTS if part not in found]
        if missing:
            raise CollabError(f"{options.artifact} has no {missing[0]} matrices in layer {layer}")


def check_hot(options: LoaderOptions, vllm_config: VllmConfig, experts: int) -> None:
    """CollabError when there is no such policy, the layers have fewer experts, or a kernel needs all at once.

    ``experts``: of the layer that has fewest.
    """
    if options.hot is None:
        return
    placement_policy(options.policy)
    if options.hot > experts:
        raise CollabError(f'option "hot" is {options.hot}, the layers have {experts} experts')
    method = vllm_config.model_config.quantization
    if method is not None and options.artifact is None:
        raise CollabError(
            f'option "hot" is for unquantized checkpoints and artifacts, this one is quantized ({method})'
        )
