"""The mutants: what is wrong in each, and how it is made of a right artifact and its pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFValueType
from numpy.typing import NDArray

from collab_conformance.mutants.change import Change, Data
from collab_conformance.mutants.scale import scalable, scaled
from collab_conformance.pack.pack_document import Pack
from collab_plugin.checkpoint.checkpoint import Bytes, Checkpoint
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import Role

SCALE = 1.01


class NotApplicableError(Exception):
    """Why an artifact cannot have this mutant."""


@dataclass(frozen=True)
class Mutant:
    """``bug``: the mistake that it stands for. ``make`` raises NotApplicableError."""

    name: str
    bug: str
    make: Callable[[Checkpoint, Pack], Change]


def _experts_swapped(checkpoint: Checkpoint, pack: Pack) -> Change:
    """Of the middle layer the two experts that the pack's prompts use most: others may not be used at all."""
    layer = _middle(checkpoint)
    first, second = (int(e) for e in np.argsort(-usage(checkpoint, pack, layer), kind="stable")[:2])
    order = np.arange(topology_of(checkpoint).expert_count)
    order[[first, second]] = second, first
    return Change(tensors={name: _reordered(checkpoint, name, order) for name in _of(checkpoint, layer, Role.EXPERT)})


def _used(step: int) -> Callable[[Checkpoint, Pack], Change]:
    def make(checkpoint: Checkpoint, pack: Pack) -> Change:
        t = topology_of(checkpoint)
        used = t.experts_used + step
        if not 1 <= used <= t.groups_used * t.experts_per_group:
            raise NotApplicableError(f"{used} experts cannot be used")
        return Change(keys={_key(checkpoint, "expert_used_count"): _number(used)})

    return make


def _bias_dropped(checkpoint: Checkpoint, pack: Pack) -> Change:
    names = [name for name, info in checkpoint.tensors.items() if info.role == Role.ROUTER_BIAS]
    if not names:
        raise NotApplicableError("its router has no bias")
    return Change(tensors={name: Data(checkpoint.tensors[name].type, _zeros(checkpoint, name)) for name in names})


def _groups_shifted(checkpoint: Checkpoint, pack: Pack) -> Change:
    """All experts move by half a group, with their router rows and biases: only the groups are others."""
    t = topology_of(checkpoint)
    if t.groups < 2:
        raise NotApplicableError("its experts are not in groups")
    order = np.roll(np.arange(t.expert_count), t.experts_per_group // 2)
    moved = [name for name, info in checkpoint.tensors.items() if info.by_expert]
    return Change(tensors={name: _reordered(checkpoint, name, order) for name in moved})


def _groups_dropped(checkpoint: Checkpoint, pack: Pack) -> Change:
    if topology_of(checkpoint).groups < 2:
        raise NotApplicableError("its experts are not in groups")
    return Change(
        keys=dict.fromkeys((_key(checkpoint, "expert_group_count"), _key(checkpoint, "expert_group_used_count")))
    )


def _scale_off(part: str) -> Callable[[Checkpoint, Pack], Change]:
    def make(checkpoint: Checkpoint, pack: Pack) -> Change:
        name = f"blk.{_middle(checkpoint)}.{part}.weight"
        kind = checkpoint.tensors[name].type
        if not scalable(kind):
            raise NotApplicableError(f"{kind.name} has no scale of its own to change")
        return Change(tensors={name: Data(kind, scaled(checkpoint.read_raw(name), kind, SCALE))})

    return make


def _block_inverted(checkpoint: Checkpoint, pack: Pack) -> Change:
    """The first block of the middle layer's attention output, or of 32 bytes where values are not in blocks."""
    name = f"blk.{_middle(checkpoint)}.attn_output.weight"
    kind = checkpoint.tensors[name].type
    data = np.ascontiguousarray(checkpoint.read_raw(name)).copy()
    data.reshape(-1)[: max(GGML_QUANT_SIZES[kind][1], 32)] ^= 0xFF
    return Change(tensors={name: Data(kind, data)})


def _rope_base(checkpoint: Checkpoint, pack: Pack) -> Change:
    """10000, which a file without the key gets, or ten times that where it is the right one."""
    key = _key(checkpoint, "rope.freq_base")
    right = float(checkpoint.metadata[key].value) if key in checkpoint.metadata else 1e4
    return Change(keys={key: MetaValue(1e5 if right == 1e4 else 1e4, GGUFValueType.FLOAT32)})


def _types_exchanged(checkpoint: Checkpoint, pack: Pack) -> Change:
    """Two expert tensors of the first such layer: their types change places, the bytes do not."""
    for layer in topology_of(checkpoint).moe_layers:
        names = sorted(_of(checkpoint, layer, Role.EXPERT))
        for first, second in pairwise(names):
            a, b = checkpoint.tensors[first], checkpoint.tensors[second]
            if a.type != b.type:
                stream = np.concatenate([checkpoint.read_raw(first).ravel(), checkpoint.read_raw(second).ravel()])
                cut = b.nbytes
                return Change(tensors={first: Data(b.type, stream[:cut]), second: Data(a.type, stream[cut:])})
    raise NotApplicableError("every layer has its experts in one type")


MUTANTS: Sequence[Mutant] = (
    Mutant("experts-swapped", "two experts of one layer have each other's weights", _experts_swapped),
    Mutant("k-plus-one", "one expert more a token than the plan says", _used(1)),
    Mutant("k-minus-one", "one expert fewer a token than the plan says", _used(-1)),
    Mutant("router-bias-dropped", "the router's selection bias is zero", _bias_dropped),
    Mutant("groups-shifted", "experts renumbered across the router's groups", _groups_shifted),
    Mutant("groups-dropped", "the keys of the router's groups are missing", _groups_dropped),
    Mutant("scale-experts", "scales of one layer's ffn_down_exps are 1 % too large", _scale_off("ffn_down_exps")),
    Mutant("scale-attention", "scales of one layer's attn_output are 1 % too large", _scale_off("attn_output")),
    Mutant("block-corrupted", "the bits of one block of one attn_output are inverted", _block_inverted),
    Mutant("rope-base", "the base of the rotary embedding is another", _rope_base),
    Mutant("types-exchanged", "the types of two expert tensors are exchanged, their bytes are not", _types_exchanged),
)


def usage(checkpoint: Checkpoint, pack: Pack, layer: int) -> NDArray[np.int64]:
    """How often the pack's prompts use each of the layer's experts, i64[experts]."""
    row = pack.document.artifact.moe_layers.index(layer)
    counts = np.zeros(topology_of(checkpoint).expert_count, np.int64)
    for recording in pack.recordings:
        if recording.routes is None:
            raise NotApplicableError("the pack has no routing, so that no used expert is known")
        counts += np.bincount(recording.routes.ids[row].ravel(), minlength=len(counts))
    return counts


def _middle(checkpoint: Checkpoint) -> int:
    layers = topology_of(checkpoint).moe_layers
    return layers[len(layers) // 2]


def _of(checkpoint: Checkpoint, layer: int, role: Role) -> list[str]:
    return [name for name, info in checkpoint.tensors.items() if info.layer == layer and info.role == role]


def _reordered(checkpoint: Checkpoint, name: str, order: NDArray[np.int64]) -> Data:
    info = checkpoint.tensors[name]
    data = checkpoint.read_raw(name)
    # One value an expert (a bias) is one row of bytes.
    by_expert = data.reshape(len(order), -1)
    return Data(info.type, np.ascontiguousarray(by_expert[order]))


def _zeros(checkpoint: Checkpoint, name: str) -> Bytes:
    return np.zeros_like(checkpoint.read_raw(name))


def _key(checkpoint: Checkpoint, name: str) -> str:
    return f"{checkpoint.architecture}.{name}"


def _number(value: int) -> MetaValue:
    return MetaValue(value, GGUFValueType.UINT32)
