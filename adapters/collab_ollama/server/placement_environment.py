"""A placement as the environment of an Ollama server, and only what Ollama hands on.

Ollama has no option for expert placement. It starts llama-server with its own environment, and
llama-server reads LLAMA_ARG_* before its command line, which wins (common/arg.cpp:787-806). Ollama's
command line sets the context, batches, parallel requests, flash attention and the memory mapping, so
none of these may come this way. The environment also reaches the runs in which Ollama looks for GPUs,
without a GPU backend among them: a buffer type other than CPU would make those fail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import layer_of
from collab_plugin.placement.placement import Placement

ON_PROCESSOR = ("host", "disk")
"""Kinds of tiers that the processor computes from: pages of a file are read into its memory."""


def environment_of(placement: Placement) -> dict[str, str]:
    """The variables for `ollama serve`; empty when llama.cpp's own fitting (--fit) is to place.

    --fit knows experts: it fills the GPU with the dense parts first. It gives way as soon as a tensor is
    placed by hand, and everything not placed goes to the GPU; it is switched off then for clarity.
    Raises CollabError for placements that Ollama cannot carry out.
    """
    kinds = {tier.name: tier.kind for tier in placement.tiers}
    if placement.tensors.fit or not placement.tensors.tiers:
        return {}
    gpus = [name for name, kind in kinds.items() if kind == "gpu"]
    used = [name for name in gpus if name in placement.tensors.tiers.values()]
    if len(gpus) > 1 and used:
        raise CollabError(
            f"the placement puts experts into {used[0]}, one of {len(gpus)} GPUs; Ollama cannot choose among GPUs: "
            "place on the host only, and llama.cpp divides the rest"
        )
    host = [tensor for tensor, tier in placement.tensors.tiers.items() if kinds[tier] in ON_PROCESSOR]
    variables = {"LLAMA_ARG_FIT": "off"}
    if host:
        variables["LLAMA_ARG_OVERRIDE_TENSOR"] = override_of(host)
    return variables


def override_of(tensors: Iterable[str]) -> str:
    r"""The value of --override-tensor that keeps these in the processor's memory.

    A comma would end an entry, so patterns have none: ^blk\.(3|4)\.(ffn_down_exps\.weight|...)$=CPU.
    """
    layers: dict[str, list[int]] = defaultdict(list)
    for name in tensors:
        layer = layer_of(name)
        assert layer is not None, name  # a placement has expert tensors only
        layers[name.split(".", 2)[2]].append(layer)
    parts: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for suffix, numbers in layers.items():
        parts[tuple(sorted(numbers))].append(suffix.replace(".", r"\."))
    patterns = [
        rf"^blk\.({'|'.join(map(str, numbers))})\.({'|'.join(sorted(suffixes))})$=CPU"
        for numbers, suffixes in sorted(parts.items())
    ]
    return ",".join(patterns)


def host_bytes(placement: Placement, sizes: Mapping[str, int]) -> int:
    """Bytes of the experts that the placement keeps on the host; CollabError for a tensor that the model lacks.

    ``sizes``: name of a tensor -> bytes, of the model that is run.
    """
    kinds = {tier.name: tier.kind for tier in placement.tiers}
    unknown = [name for name in placement.tensors.tiers if name not in sizes]
    if unknown:
        raise CollabError(f"the placement is for another model: this one has no {unknown[0]}; place it again")
    return sum(sizes[name] for name, tier in placement.tensors.tiers.items() if kinds[tier] in ON_PROCESSOR)
