"""Weights of models that nobody probed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_models.model_bench import Bench

from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.planning import learned_weights as law
from collab_plugin.planning.error_energy import error_energy
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.stats import Stats, Stream


def _stats(bench: Bench, *norms: float) -> Stats:
    streams = {layer: Stream(norm / 2, norm) for layer, norm in enumerate(norms)}
    return dataclasses.replace(bench.source.stats, streams=streams)


def _learned(bench: Bench, stats: Stats) -> law.Learned:
    return law.learned_weights(bench.checkpoint, bench.topology, stats, ImportanceMatrix.of(stats, 32.0))


def test_the_table_goes_by_part_and_depth(bench: Bench) -> None:
    weights = law.table_weights(bench.checkpoint, bench.topology)
    assert set(weights) == {n for n, info in bench.checkpoint.tensors.items() if quantizable(info)}
    assert weights["token_embd.weight"] == law.TABLE["embedding"]
    down, gate = (weights[f"blk.1.ffn_{p}_exps.weight"] for p in ("down", "gate"))
    assert down / gate == pytest.approx(law.TABLE["expert down"] / law.TABLE["expert gate/up"])
    assert down == pytest.approx(law.ENDS * law.TABLE["expert down"])  # the last of two layers


@pytest.mark.parametrize("norms", [(), (5.0,)])
def test_the_table_stands_where_the_stream_was_not_seen(bench: Bench, norms: tuple[float, ...]) -> None:
    found = _learned(bench, _stats(bench, *norms))
    assert not found.by_stream
    assert found.weights == law.table_weights(bench.checkpoint, bench.topology)
    assert not law.learned_weights(bench.checkpoint, bench.topology, None, None).by_stream


def test_every_tensor_has_a_weight(bench: Bench) -> None:
    found = _learned(bench, _stats(bench, 100.0, 400.0))
    assert found.by_stream
    assert set(found.weights) == set(law.table_weights(bench.checkpoint, bench.topology))
    assert all(weight > 0 for weight in found.weights.values())


def test_an_error_counts_by_its_share_of_the_stream(bench: Bench) -> None:
    """Twice the squared norm everywhere: what writes to it counts half, and what feeds that too."""
    one, two = (_learned(bench, _stats(bench, 100.0 * f, 400.0 * f)).weights for f in (1, 2))
    for name, info in bench.checkpoint.tensors.items():
        if name in one:
            written = info.layer is not None and " " in part_of(info)
            assert two[name] == pytest.approx(one[name] / (2 if written else 1))


def test_the_last_layer_by_hand(bench: Bench) -> None:
    stats = _stats(bench, 100.0, 400.0)
    weights, tensors = _learned(bench, stats).weights, bench.checkpoint.tensors
    info, matrix = tensors["blk.1.ffn_down_exps.weight"], ImportanceMatrix.of(stats, 32.0)
    assert matrix is not None
    energy = error_energy(bench.checkpoint, info, matrix, stats.routing[1], bench.topology)
    assert energy is not None
    assert weights[info.name] == pytest.approx(weights["output.weight"] * law.WRITTEN * energy / 400)
    gate = weights["blk.1.ffn_gate_exps.weight"]
    assert gate == pytest.approx(weights[info.name] * law.INNER["expert gate/up"])


def test_an_error_that_later_layers_read_counts_more() -> None:
    """At the same share of the stream, and the more the less of the last stream was there already."""
    early, late, last = (law.spread(1, Stream(1.0, norm), 100.0) for norm in (1.0, 50.0, 100.0))
    assert early > late > last == law.WRITTEN
    assert law.spread(0, Stream(1.0, 1.0), 100.0) < early


def test_energy_is_that_of_noise_in_the_product(bench: Bench) -> None:
    """Noise of relative error 1 in the weights, inputs of the importance's mean squares."""
    name = "blk.0.attn_output.weight"
    info, matrix = bench.checkpoint.tensors[name], ImportanceMatrix.of(bench.source.stats, 0.0)
    assert matrix is not None
    rng = np.random.default_rng(0)
    squares = matrix.entries[name].vector(0, info.shape[-1])
    weights = bench.checkpoint.read(name)
    inputs = rng.normal(size=(4000, info.shape[-1])) * np.sqrt(squares)
    noise = inputs @ (weights * rng.normal(size=weights.shape)).T
    energy = error_energy(bench.checkpoint, info, matrix, None, bench.topology)
    assert energy == pytest.approx(float(np.square(noise).sum(1).mean()), rel=0.25)  # from half of the rows
