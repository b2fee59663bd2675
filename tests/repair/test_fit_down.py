"""Fitted experts give what all experts gave, as far as the samples tell, and no layer is made worse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models.hand_made_plans import pruned

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.repair import fit_down
from collab_plugin.repair.fit_down import RIDGES, Goal, LayerFit, LayerRepair, pieces_of, taken_by
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import BlockSamples, LayerSample

F32 = NDArray[np.float32]
KEPT, CTX, LAYER = (0, 1, 3), 32, 1


def block_of(model: Path) -> RoutedBlock:
    checkpoint = open_gguf(model)
    return RoutedBlock(checkpoint, topology_of(checkpoint), LAYER)


def sample_of(block: RoutedBlock, tokens: int, rank: int = 24) -> LayerSample:
    """Inputs of low rank, as those of real models are, and what all experts give."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((tokens, rank)) @ random.standard_normal((rank, 256)) / np.sqrt(rank)
    t = block.topology
    choice = block.choose(inputs.astype(np.float32), tuple(range(t.expert_count)), t.experts_used, grouped=False)
    return LayerSample(inputs.astype(np.float32), block.outputs(inputs.astype(np.float32), choice))


def fitted(
    block: RoutedBlock, sample: LayerSample, kept: tuple[int, ...] = KEPT, used: int | None = None
) -> tuple[LayerRepair, dict[int, F32]]:
    """How the layer was fitted, and what its down matrices change by."""
    choice = block.choose(sample.inputs, kept, used or block.topology.experts_used, grouped=False)
    with ThreadPoolExecutor(2) as pool:
        taken = taken_by(block, sample.inputs, kept, choice, pool)
        fit = LayerFit(Goal.of(block, sample.outputs, CTX, taken, pool), taken, pool)
        pieces = [fit.deltas(number) for number in range(len(pieces_of(sample.outputs.shape[1])))]
    return fit.repair, {expert: np.concatenate([piece[expert] for piece in pieces]) for expert in pieces[0]}


def test_fit_lowers_the_error_of_tokens_that_it_did_not_see(qwen3moe: Path) -> None:
    block = block_of(qwen3moe)
    found, deltas = fitted(block, sample_of(block, 1600))
    assert set(deltas) == set(KEPT)
    assert found.before > 0.05
    assert found.after < 0.9 * found.before


def test_layer_stays_as_it_is_where_no_fit_helps(qwen3moe: Path) -> None:
    block = block_of(qwen3moe)
    sample = sample_of(block, 320)
    noise = np.random.default_rng(1).standard_normal(sample.outputs.shape).astype(np.float32)
    choice = block.choose(sample.inputs, KEPT, block.topology.experts_used, grouped=False)
    alone = LayerSample(sample.inputs, block.outputs(sample.inputs, choice) + noise)
    found, deltas = fitted(block, alone)
    assert deltas == {}
    assert found.ridge == 0
    assert found.after == found.before


def test_fit_is_the_least_squares_solution_of_one_expert(qwen3moe: Path) -> None:
    """With one expert kept and used there are no others to wait for: the solution has a formula."""
    block = block_of(qwen3moe)
    sample = sample_of(block, 1600)
    choice = block.choose(sample.inputs, (2,), 1, grouped=False)
    found, deltas = fitted(block, sample, (2,), 1)
    hidden = (block.hidden(sample.inputs, 2) * choice.weights).astype(np.float64)
    old = block.checkpoint.read(block.down, expert=2).astype(np.float64)
    missing = sample.outputs - hidden @ old.T
    gram = hidden.T @ hidden
    assert found.ridge in RIDGES
    solution = np.linalg.solve(gram + found.ridge * np.trace(gram) / 256 * np.eye(256), hidden.T @ missing).T
    assert np.abs(deltas[2] - solution).max() < 1e-3 * np.abs(solution).max()


def test_pieces_of_columns_give_what_the_whole_gives(qwen3moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = block_of(qwen3moe)
    sample = sample_of(block, 640)
    whole, wanted = fitted(block, sample)
    for name, value in (("WHOLE", 64), ("COLUMNS", 48), ("JUDGED", 99)):
        monkeypatch.setattr(fit_down, name, value)
    assert [piece.stop for piece in pieces_of(256)] == [48, 96, 144, 192, 240, 256]
    found, deltas = fitted(block, sample)
    assert (found.ridge, found.before, found.after) == pytest.approx((whole.ridge, whole.before, whole.after), rel=1e-4)
    assert set(deltas) == set(wanted)
    assert all(np.abs(deltas[e] - wanted[e]).max() < 1e-3 * np.abs(wanted[e]).max() for e in KEPT)
    monkeypatch.setattr(fit_down, "JUDGED", 2)  # of six pieces
    assert fitted(block, sample)[0].after == pytest.approx(whole.after, rel=0.2)


def test_checkpoint_gives_repaired_matrices_and_all_else_unchanged(qwen3moe: Path) -> None:
    original = open_gguf(qwen3moe)
    block = block_of(qwen3moe)
    sample = sample_of(block, 640)
    plan = pruned(original, copy_plan(original), KEPT)
    samples = BlockSamples(qwen3moe, "", CTX, 640, {LAYER: sample})
    repaired = RepairedCheckpoint(original, plan, samples)
    delta = fitted(block, sample)[1][3]
    before, after = (c.read(block.down, expert=3, rows=slice(5, 9)) for c in (original, repaired))
    assert np.array_equal(after, before + delta[5:9])
    raw = repaired.read_raw(block.down, expert=3, rows=slice(5, 9))
    assert np.array_equal(raw.view(np.float32), after)
    others = [n for n in original.tensors if n != block.down]
    assert all(np.array_equal(original.read(n), repaired.read(n)) for n in others)


def test_samples_of_another_computation_are_refused(qwen3moe: Path) -> None:
    block = block_of(qwen3moe)
    sample = sample_of(block, 64)
    block.check(sample)
    with pytest.raises(CollabError, match="computes other outputs"):
        block.check(LayerSample(sample.inputs, sample.outputs[::-1]))
