"""What a unit of a tensor's error costs in a model that nobody probed: by a law where calibration saw the residual
stream, else by a table.

Both were learnt from models that were probed or quantized part by part (docs/method.md §6 has the law and its evidence,
docs/quality.md §2 how well it holds on models that did not teach it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.error_energy import error_energy, plain_energy
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.stats import Stats, Stream

TABLE: Mapping[str, float] = {
    "embedding": 0.35,
    "output": 0.85,
    "attention": 0.02,
    "expert down": 0.03,
    "expert gate/up": 0.006,
    "shared-expert down": 0.01,
    "shared-expert gate/up": 0.007,
    "ffn down": 0.2,
    "ffn gate/up": 0.07,
}
"""Nats per unit of relative error of one tensor of a model of three layers."""
TABLE_LAYERS = 3
ENDS = 3.0
"""First and last eighth of the layers against the middle, in the table."""

# Geometric means over six families; in brackets the models' own (benchmarks/sensitivity/constants.py, docs/method.md
# §6). Noise counts `down` before the last layer at two thirds and attention at four fifths, which is put right.
OUTPUT = 0.36
"""Of the mean energy of the logits, Σ_j g_j² W_ij² with the last norm's g (0.28 to 0.44)."""
WRITTEN = 0.79
"""Of the output's weight, for an error that is as large as the stream that leaves the last layer (0.49 to 1.28)."""
SPREADS, SPREADS_FIRST = 2.5, 0.7
"""How much more an error counts that later layers read (0.6 to 2.7 before noise's part), in layer 0 (0.1 to 1.1)."""
EMBEDDING = 0.3
"""Of the output's weight (0.18 to 0.56)."""
ATTENTION = 0.018
"""Of the output's weight, for each matrix of the attention of a model of three layers (0.008 to 0.027)."""
INNER: Mapping[str, float] = {"expert gate/up": 0.5, "shared-expert gate/up": 0.74, "ffn gate/up": 0.35}
"""Of the weight of the layer's `down`, for gate and for up: both feed it (experts of last layers 0.37 to 1.0)."""
LEAST_INNER = 0.13
"""Of routed experts this falls with what is still to come (layer 0: 0.08 to 0.34, before noise's part)."""


@dataclass(frozen=True)
class Learned:
    """``weights``: nats per unit of relative error, by tensor. ``by_stream``: by the law, not by the table. ``prices``:
    nats a unit of squared error in the stream after each layer; none by the table."""

    weights: Mapping[str, float]
    by_stream: bool
    prices: Mapping[int, float] = field(default_factory=dict)


def learned_weights(
    checkpoint: Checkpoint, topology: Topology, stats: Stats | None, matrix: ImportanceMatrix | None
) -> Learned:
    """By the law where ``stats`` have the stream after every layer and an importance for what writes to it."""
    weights = table_weights(checkpoint, topology)
    if stats is None or matrix is None or set(stats.streams) < set(range(topology.block_count - _predicting(topology))):
        return Learned(weights, False)
    output = OUTPUT * logits_energy(checkpoint)
    scale = output / TABLE["output"]
    found = {name: weight * scale for name, weight in weights.items()}
    last = stats.streams[max(stats.streams)].after_layer
    prices = {n: output * spread(n, stream, last) / stream.after_layer for n, stream in stats.streams.items()}
    downs: dict[tuple[Role, int], float] = {}
    for name, info in checkpoint.tensors.items():
        if not quantizable(info):
            continue
        if info.role == Role.OUTPUT:
            found[name] = output
        elif info.role == Role.EMBEDDING:
            found[name] = EMBEDDING * output + (0.0 if _untied(checkpoint) else output)
        elif info.role == Role.ATTENTION and info.layer is not None:
            found[name] = ATTENTION * output * TABLE_LAYERS / max(topology.block_count, TABLE_LAYERS)
        elif info.layer is not None and info.layer in stats.streams and part_of(info).endswith(" down"):
            energy = error_energy(checkpoint, info, matrix, stats.routing.get(info.layer), topology)
            if energy is not None:
                gate = stats.shared_gates.get(info.layer, 1.0) if info.role == Role.SHARED_EXPERT else 1.0
                found[name] = prices[info.layer] * energy * gate
                downs[info.role, info.layer] = found[name]
    for name, info in checkpoint.tensors.items():
        down = downs.get((info.role, -1 if info.layer is None else info.layer))
        if down is not None and name in found and not part_of(info).endswith(" down"):
            found[name] = down * _inner(info, stats.streams[info.layer or 0], last)
    return Learned(found, True, prices)


def spread(layer: int, stream: Stream, last: float) -> float:
    """What an error in the stream after ``layer`` counts, in units of the output's weight and its share of the stream.

    A share of the stream is worth less at the end, where others were added to it, but those others read it.
    """
    share = min(stream.after_layer / last, 1.0)
    later = SPREADS_FIRST if layer == 0 else SPREADS
    return WRITTEN * (share + later * (1 - share))


def _inner(info: TensorInfo, stream: Stream, last: float) -> float:
    share = INNER[part_of(info)]
    if info.role != Role.EXPERT:
        return share
    return max(share * min(stream.after_layer / last, 1.0), LEAST_INNER)


def _predicting(topology: Topology) -> int:
    return len(topology.prediction_layers)


def _untied(checkpoint: Checkpoint) -> bool:
    return any(info.role == Role.OUTPUT and quantizable(info) for info in checkpoint.tensors.values())


def logits_energy(checkpoint: Checkpoint) -> float:
    """Mean energy of a logit, from the matrix and the norm before it."""
    tensors = checkpoint.tensors
    output = tensors.get("output.weight") or tensors["token_embd.weight"]
    norm = tensors.get("output_norm.weight")
    gains = None if norm is None else np.square(checkpoint.read(norm.name)).astype(np.float32)
    return plain_energy(checkpoint, output, gains)


def table_weights(checkpoint: Checkpoint, topology: Topology) -> dict[str, float]:
    """Weights by part and depth.

    A layer adds to a stream that all layers share, so its error counts a layer's share of it: the
    weights of layers fall with their number, those of embedding and output do not.
    """
    found = {}
    blocks = topology.block_count
    ends = max(1, blocks // 8)
    for name, info in checkpoint.tensors.items():
        if not quantizable(info):
            continue
        weight = TABLE.get(part_of(info), TABLE["attention"])
        if info.layer is not None:
            weight *= TABLE_LAYERS / max(blocks, TABLE_LAYERS)
            weight *= ENDS if info.layer < ends or info.layer >= blocks - ends else 1.0
        found[name] = weight
    return found
