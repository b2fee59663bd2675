"""Is the plan for this model? Answered from the router weights before any memory is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from collab_plugin.checkpoint.families.family import Family
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan
from collab_vllm.load.safetensors_files import Weights
from collab_vllm.selection.expert_selection import Part, expert_of, layer_of, within_block

_GGUF_SUFFIXES = ("weight", "bias")


def router_weights(weights: Weights, family: Family) -> dict[str, np.ndarray]:
    """Router weights as float32 under their GGUF names, of all layers, prediction layers included."""
    suffixes = {name: name.rpartition(".")[2] for name in family.router}

    def choose(name: str) -> Part | None:
        rest = within_block(name, family)
        if rest is None or suffixes.get(rest) not in _GGUF_SUFFIXES:
            return None
        return Part(f"blk.{layer_of(name)}.ffn_gate_inp.{suffixes[rest]}")

    return {name: tensor.to(torch.float32).numpy() for name, tensor in weights.parts(choose)}


def model_id(routers: Iterable[tuple[str, np.ndarray]]) -> str:
    """`collab_plugin.checkpoint.identity.model_id` of router weights under GGUF names."""
    digest = hashlib.sha256()
    for name, values in sorted(routers, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    return f"sha256:{digest.hexdigest()}"


def check_complete(weights: Weights, family: Family, layers: int, experts: int) -> None:
    """CollabError when a shard or an expert is missing, which would be noticed when memory is taken."""
    names = set(weights.names())
    absent = sorted(weights.promised() - names)
    if absent:
        raise CollabError(f"the index promises {absent[0]!r}, no file holds it; download the model again")
    held: dict[int, set[int]] = {}
    for name in names:
        layer, expert = layer_of(name), expert_of(name, family)
        if layer is not None and expert is not None and layer < layers:
            held.setdefault(layer, set()).add(expert)
    for layer, found in sorted(held.items()):
        if odd := sorted(found ^ set(range(experts))):
            raise CollabError(f"expert {odd[0]} of layer {layer} is missing or too many: config.json says {experts}")


def check_model(plan: Plan, weights: Weights, family: Family, layers: int, experts: int, *, strict: bool) -> None:
    """CollabError when ``plan`` does not fit a model of ``layers`` blocks with ``experts`` experts.

    With ``strict`` the router weights must be those of the plan's model, whatever its file format. Layers
    from ``layers`` on predict more tokens; a GGUF may or may not have been made with them.
    """
    check_complete(weights, family, layers, experts)
    found = router_weights(weights, family)
    here = {int(name.split(".")[1]): values.shape[0] for name, values in found.items() if name.endswith("weight")}
    inside = {layer for layer in here if layer < layers}
    if not inside:
        raise CollabError("the checkpoint has no router weights: load format collab prunes Mixture-of-Experts models")
    wrong = next((layer for layer in sorted(inside) if here[layer] != experts), None)
    if wrong is not None:
        raise CollabError(f"layer {wrong} routes to {here[wrong]} experts, config.json says {experts}")
    kept = {layer: ids for layer, ids in plan.pruning.kept.items() if layer < layers}
    if kept and set(kept) != inside:
        raise CollabError(f"{_other(plan)}: it prunes layers {_span(kept)}, this model has experts in {_span(inside)}")
    most = max((max(ids) for ids in kept.values()), default=plan.pruning.expert_count - 1)
    if most >= experts or (not kept and plan.pruning.expert_count != experts):
        raise CollabError(f"{_other(plan)}: it keeps expert {most}, this model has {experts}")
    shown = {name: values for name, values in found.items() if int(name.split(".")[1]) in inside}
    if strict and plan.source.model_id not in (model_id(shown.items()), model_id(found.items())):
        raise CollabError(
            f"{_other(plan)} (router weights differ); make a plan of this model, or set "
            '"strict": false for a fine-tuned copy of the same model'
        )


def _other(plan: Plan) -> str:
    return f"the plan is for another model, {plan.source.name} ({plan.source.architecture})"


def _span(layers: Iterable[int]) -> str:
    numbers = sorted(layers)
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
