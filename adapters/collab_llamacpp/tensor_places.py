"""What a placement is to llama.cpp: whole tensors in the processor's memory or on a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.placement.match_artifact import check_made_for
from collab_plugin.placement.placement import Placement

ON_GPU = ("gpu", "unified")


@dataclass(frozen=True)
class TensorPlaces:
    """Regular expressions of tensors, for `TensorOverrides`."""

    on_processor: tuple[str, ...] = ()
    on_gpu: tuple[str, ...] = ()


def tensor_places(placement: Placement, path: str | Path) -> TensorPlaces:
    """The placement as regular expressions; CollabError when the GGUF at ``path`` is another than it was made for."""
    check_made_for(placement, open_gguf(Path(path)))
    kinds = {tier.name: tier.kind for tier in placement.tiers}
    where: dict[bool, list[str]] = {True: [], False: []}
    for name, tier in placement.tensors.tiers.items():
        where[kinds[tier] in ON_GPU].append(f"^{re.escape(name)}$")
    return TensorPlaces(tuple(where[False]), tuple(where[True]))


def honours(placement: Placement) -> tuple[str, ...]:
    """What llama.cpp does with it, a sentence each."""
    kinds = {tier.kind for tier in placement.tiers}
    said = ["whole tensors: the experts of a layer and projection stay together (`tensors`; `experts` are not read)"]
    if "gpu" in kinds and "host" in kinds:
        said.append("GPU and processor: each tensor is computed where it lies")
    if "disk" in kinds:
        said.append(
            "disk: the file is mapped; where it is larger than memory, `run` on Linux has those experts leave it that "
            "the policy (lfu-steady, if the placement's moves none) thinks worth least; elsewhere the system chooses"
        )
    return tuple(said)
