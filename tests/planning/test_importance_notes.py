"""What a plan says where importance or routing is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from small_models.imatrix_files import write_imatrix
from small_models.model_bench import Bench

from collab_plugin.planning.sources import StatsSource
from collab_plugin.stats.stats import ImatrixEntry

QUERY, UP, DOWN = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"
BUDGET = 4_000_000


def notes(bench: Bench, source: StatsSource | str | None = "own", **options: object) -> tuple[str, ...]:
    return bench.plan(BUDGET, source=source, types=("IQ2_XXS", "Q4_K"), allow_few_tokens=True, **options).notes


def test_tensors_without_data_and_what_they_became(softmax: Bench, tmp_path: Path) -> None:
    entries = {n: e for n, e in softmax.source.stats.imatrix.items() if n not in (QUERY, DOWN)}
    source = StatsSource.read(write_imatrix(tmp_path / "imatrix.gguf", entries))
    plan = softmax.plan(BUDGET, source=source, types=("IQ2_XXS", "Q4_K"), allow_few_tokens=True)
    found = [note for note in plan.notes if note.startswith("NO IMPORTANCE ")]
    assert len(found) == 1
    assert found[0].startswith(f"NO IMPORTANCE for 2 of {len(plan.tensors)} tensors: the stats have no data of them")
    assert "output.weight" not in found[0]
    for name in (QUERY, DOWN):
        assert plan.tensors[name].type in ("Q2_K", "Q4_K")
        assert name in found[0]
        assert plan.tensors[name].type in found[0]


def test_without_routing_the_plan_says_that_nothing_is_pruned(softmax: Bench, tmp_path: Path) -> None:
    """One count for all experts, as converted from the format before GGUF."""
    entries = {n: ImatrixEntry(e.sum2.reshape(1, -1), e.count[:1] + 1) for n, e in softmax.source.stats.imatrix.items()}
    source = StatsSource.read(write_imatrix(tmp_path / "imatrix.gguf", entries))
    told = "NOTHING IS PRUNED: the stats (imatrix of another tool) have no counts by expert of a layer, so "
    assert any(note.startswith(told) for note in notes(softmax, source))
    assert not any(note.startswith("NOTHING IS PRUNED") for note in notes(softmax, source, keep="100%"))


def test_without_stats_the_plan_says_that_nothing_is_pruned(softmax: Bench) -> None:
    assert any(note.startswith("NOTHING IS PRUNED: there are no stats, so ") for note in notes(softmax, None))
    assert not any(note.startswith("NOTHING IS PRUNED") for note in notes(softmax))


def test_routing_of_some_layers_only(softmax: Bench) -> None:
    stats = softmax.source.stats
    partial = dataclasses.replace(softmax.source, stats=dataclasses.replace(stats, routing={0: stats.routing[0]}))
    assert any("have no counts by expert of layer 1, so" in note for note in notes(softmax, partial))


def test_importance_of_gate_and_up_in_one(softmax: Bench, tmp_path: Path) -> None:
    """The same plan, errors included, as with an entry for each; without one both would be without data."""
    apart, fused = dict(softmax.source.stats.imatrix), dict(softmax.source.stats.imatrix)
    for layer in softmax.topology.moe_layers:
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up")]
        entry = apart[names[0]]
        fused[f"blk.{layer}.ffn_gate_up_exps.weight"] = entry
        for name in names:
            apart[name] = entry
            fused.pop(name)
    plans = [
        softmax.plan(
            BUDGET,
            source=StatsSource.read(write_imatrix(tmp_path / f"{at}.gguf", entries)),
            types=("IQ2_XXS", "Q4_K"),
            allow_few_tokens=True,
        )
        for at, entries in enumerate((apart, fused))
    ]
    assert plans[0].tensors == plans[1].tensors
    assert any("blk.0.ffn_up_exps.weight that of blk.0.ffn_gate_up_exps.weight" in note for note in plans[1].notes)
    assert not any("that of" in note for note in plans[0].notes)
