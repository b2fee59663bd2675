"""What differs between two plans."""

from __future__ import annotations

import dataclasses

from small_models.model_bench import Bench
from small_models.random_moe import EXPERTS

from collab_plugin.plans.plan_diff import Pair, PlanDiff, diff_plans


def test_equal_plans_do_not_differ(bench: Bench) -> None:
    plan = bench.plan(None, keep_types=True, keep="12")
    assert diff_plans(plan, plan) == PlanDiff({}, {}, {}, {})


def test_pruned_against_whole(bench: Bench) -> None:
    whole, pruned = bench.plan(None, keep_types=True), bench.plan(None, keep_types=True, keep="12")
    diff = diff_plans(whole, pruned)
    assert diff.values["expert_count"] == Pair(16, 12)
    assert diff.values["experts_used"] == Pair(4, 3)
    assert diff.values["criterion"] == Pair("none", "freq-score")
    assert diff.values["bytes"] == Pair(whole.bytes, pruned.bytes)
    assert "source" not in diff.values
    assert diff.kept_only_in_b == {}
    dropped = {n: tuple(i for i in range(EXPERTS) if i not in kept) for n, kept in pruned.pruning.kept.items()}
    assert diff.kept_only_in_a == dropped
    assert diff_plans(pruned, whole).kept_only_in_b == dropped


def test_other_types(softmax: Bench) -> None:
    budget = softmax.topology.total_parameters
    a = softmax.plan(budget, types=("Q4_K", "Q8_0"))
    name = next(n for n, t in a.tensors.items() if t.type == "Q4_K")
    tensors = {**a.tensors, name: dataclasses.replace(a.tensors[name], type="Q6_K")}
    fewer = {n: t for n, t in tensors.items() if n != "output.weight"}
    diff = diff_plans(a, dataclasses.replace(a, tensors=fewer))
    assert diff.types == {name: Pair("Q4_K", "Q6_K"), "output.weight": Pair(a.tensors["output.weight"].type, None)}
    assert set(diff.values) == {"fingerprint"}


def test_two_choices_of_experts(softmax: Bench) -> None:
    a, b = (softmax.plan(None, keep_types=True, keep="8", criterion_options={"alpha": alpha}) for alpha in (0.0, 1.0))
    diff = diff_plans(a, b)
    for layer in diff.kept_only_in_a:
        assert set(diff.kept_only_in_a[layer]) == set(a.pruning.kept[layer]) - set(b.pruning.kept[layer])
        assert set(diff.kept_only_in_b[layer]) == set(b.pruning.kept[layer]) - set(a.pruning.kept[layer])
    assert diff.kept_only_in_a


def test_another_model(softmax: Bench, grouped: Bench) -> None:
    diff = diff_plans(softmax.plan(None, keep_types=True), grouped.plan(None, keep_types=True))
    assert {"source", "calibration", "bytes", "bits_per_weight"} <= set(diff.values)
