"""The joint search: which counts it weighs, and what a plan tells about it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from small_models.model_bench import Bench
from small_models.random_moe import EXPERTS, GROUPS, TOP_K, imagined_stats

from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, fallback
from collab_plugin.planning.allocators.knapsack import UNIFORM
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import predictor_of, together
from collab_plugin.planning.search import error_table, make_plans
from collab_plugin.planning.search_space import counts_to_weigh, notches, prunings, prunings_by_rule
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.plans.plan import Plan, Point
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.stats.sensitivity import GroupProbe, PruningProbe, Sensitivity

BY_NAME = {criterion.name: criterion for criterion in CRITERIA}
TRAINED = Path(__file__).parents[1] / "models"
FAST = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def _planning(bench: Bench, source: str | None = "own", **request: object) -> PlanningInput:
    return bench.planning(10**7, source=source, **request)


def _candidates(bench: Bench, **request: object) -> Candidates:
    return Candidates(_planning(bench, **request))


def _budget(bench: Bench, bpw: float) -> int:
    return int(bpw * bench.topology.total_parameters / 8)


def _found(bench: Bench, pruned: tuple[PruningProbe, ...], groups: tuple[GroupProbe, ...] = ()) -> Sensitivity:
    model, stats = model_id(bench.checkpoint), bench.source.sha256
    return Sensitivity(model, stats, ("text.txt",), "", 512, 4, 8, 1020, 86016, "engine", groups, pruned)


def _of(plan: Plan, kind: str) -> list[Point]:
    return [p for p in plan.considered if p.kind == kind]


# -- what is weighed


def test_counts(softmax: Bench, grouped: Bench) -> None:
    assert notches(_planning(softmax)) == list(range(EXPERTS, EXPERTS // 4 - 1, -1))
    assert notches(_planning(grouped)) == [16, 12, 8, 4]  # whole groups of four
    assert notches(_planning(grouped, groups="disband")) == list(range(16, 3, -1))


def test_counts_to_weigh(bench: Bench) -> None:
    scaled = counts_to_weigh(_planning(bench))
    counts = notches(_planning(bench))
    served = [n for n in counts if n >= 8 or bench.topology.groups == 1]  # a group's score needs two experts
    assert scaled == [(n, max(1, int(TOP_K * n / EXPERTS + 0.5))) for n in served]
    both = counts_to_weigh(_planning(bench, experts_used="auto"))
    assert set(both) == set(scaled) | {(n, TOP_K) for n in served}
    assert len(both) == len(set(both))
    assert counts_to_weigh(_planning(bench, experts_used=2)) == [(n, 2) for n in served]
    assert counts_to_weigh(_planning(bench, keep="0.75")) == [(12, 3)]
    assert counts_to_weigh(_planning(bench, keep="0.75", experts_used="auto")) == [(12, 4), (12, 3)]
    assert counts_to_weigh(_planning(bench, source=None)) == [(16, 4)]


def test_counts_that_cannot_serve_the_top_k_are_left_out(softmax: Bench, grouped: Bench) -> None:
    assert counts_to_weigh(_planning(softmax, experts_used=14)) == [(16, 14), (15, 14), (14, 14)]
    assert counts_to_weigh(_planning(grouped, experts_used=6)) == [(16, 6), (12, 6)]  # 2 groups of 2 have four
    with pytest.raises(CollabError, match="9 experts a token cannot come from 2 groups of 4"):
        counts_to_weigh(_planning(grouped, experts_used=9))


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: c.name)
@pytest.mark.parametrize("order", ["original", "importance"])
def test_kept_sets_are_nested(bench: Bench, criterion: object, order: str) -> None:
    """Errors are measured on the experts of the smallest candidate, which are in every other."""
    candidates = _candidates(bench, criterion=criterion, order=order)
    for more, fewer in itertools.pairwise(notches(candidates.planning)):
        large, small = (candidates.kept(n, 1).kept for n in (more, fewer))
        for layer in bench.topology.moe_layers:
            assert set(small[layer]) < set(large[layer])


def test_more_is_lost_with_fewer_experts(bench: Bench) -> None:
    candidates = _candidates(bench)
    for layer in bench.topology.moe_layers:
        lost = [candidates.kept(n, 1).weight_lost[layer] for n in notches(candidates.planning)]
        assert lost[0] == 0
        assert lost == sorted(lost)
        assert lost[-1] < 1


@pytest.mark.parametrize("experts_used", [None, "auto"])
def test_predicted_loss_never_rises_with_the_budget(bench: Bench, experts_used: str | None) -> None:
    """From the smallest file to one where nothing is quantized, in 30 steps, with pruning in the search."""
    _falls(bench, bench.source, experts_used, 2.4)


@pytest.mark.parametrize("name", ["tiny-qwen3moe", "tiny-deepseek-v3"])
def test_predicted_loss_of_a_trained_model_never_rises_with_the_budget(name: str, softmax: Bench) -> None:
    checkpoint = open_checkpoint(TRAINED / name)
    trained = dataclasses.replace(softmax, checkpoint=checkpoint, topology=topology_of(checkpoint))
    _falls(trained, None, "auto", 2.75)


def _falls(bench: Bench, source: StatsSource | None, experts_used: str | None, smallest: float) -> None:
    table, costs = None, []
    for bpw in np.geomspace(smallest, 16.5, 30):
        request = {"types": FAST, "experts_used": experts_used, "source": source}
        planning = bench.planning(_budget(bench, bpw), **request)
        table = table or error_table(planning)
        (plan,) = make_plans(planning, 1, errors=table)
        assert plan.predicted_kld is not None
        costs.append(plan.predicted_kld)
    assert costs[0] > 10 * costs[-1]
    for small, large in itertools.pairwise(costs):
        assert large <= small * (1 + 1e-5)  # the solver's gap


# -- what is probed first


def test_prunings_at_marks_first_those_that_a_search_takes(softmax: Bench, grouped: Bench) -> None:
    """A quarter and a half dropped, an eighth, three and five eighths, a sixteenth: the nearest count, once each."""
    assert [n for n, _ in prunings(_candidates(softmax))] == [12, 8, 14, 10, 6, 15]
    assert set(prunings(_candidates(softmax))) < set(counts_to_weigh(_planning(softmax)))
    assert prunings(_candidates(grouped)) == [(12, 3), (8, 2)]
    assert prunings(_candidates(grouped, experts_used="auto")) == [(12, 4), (12, 3), (8, 4), (8, 2)]
    both = prunings(_candidates(softmax, experts_used="auto"))
    assert both == [(12, 4), (12, 3), (8, 4), (8, 2), (14, 4), (10, 4), (6, 4), (15, 4)]
    assert prunings(_candidates(softmax, keep="100%")) == []


def test_criteria_are_compared_at_two_marks_and_the_best_goes_on(softmax: Bench) -> None:
    planning = _planning(softmax, criterion=BY_NAME["auto"])
    by_rule = {rule: Candidates(each) for rule, each in planning.by_rule().items()}
    rules = [f"{name} groups=none" for name in ("freq-score alpha=0.5", "mass", "reap")]
    assert list(by_rule) == rules
    found = _found(softmax, ())
    first = prunings_by_rule(by_rule, found)
    assert first == [(rule, count, k) for count, k in ((12, 3), (8, 2)) for rule in rules]
    probes = tuple(PruningProbe(*task, 0.1 if task[0] == rules[1] else 0.2, 0.001) for task in first)
    found = _found(softmax, probes)
    assert prunings_by_rule(by_rule, found)[6:] == [(rules[1], n, k) for n, k in ((14, 4), (10, 3), (6, 2), (15, 4))]
    chosen = dataclasses.replace(planning, sensitivity_source=SensitivitySource.of(found))
    assert (chosen.criterion.name, chosen.rule, planning.criterion.name) == ("mass", rules[1], "freq-score")
    other = dataclasses.replace(found, stats_sha256="0" * 64)
    elsewhere = dataclasses.replace(planning, sensitivity_source=SensitivitySource.of(other))
    assert elsewhere.criterion.name == "freq-score", "other stats dropped other experts"


def test_nothing_is_pruned_to_probe_on_thin_statistics(softmax: Bench) -> None:
    """The search would not prune either; a count that was asked for is refused before minutes are spent."""
    thin = dataclasses.replace(softmax.source, stats=imagined_stats(softmax.checkpoint, tokens=60))
    bench = dataclasses.replace(softmax, source=thin)
    assert prunings(_candidates(bench)) == []
    assert len(prunings(_candidates(bench, allow_few_tokens=True))) == 6
    with pytest.raises(CollabError, match="too few calibration tokens"):
        prunings(_candidates(bench, keep="12"))


# -- what a plan tells


@pytest.fixture(scope="module")
def searched(bench: Bench) -> Plan:
    return bench.plan(_budget(bench, 4.5), types=FAST, experts_used="auto")


def test_candidates_are_the_options(bench: Bench, searched: Plan) -> None:
    found = [(p.expert_count, p.experts_used) for p in _of(searched, "candidate")]
    assert sorted(found) == sorted(counts_to_weigh(_planning(bench, experts_used="auto")))


def test_exactly_one_is_chosen_and_it_is_the_plan(searched: Plan) -> None:
    (chosen,) = [p for p in searched.considered if p.chosen]
    assert chosen.kind == "candidate"
    assert (chosen.expert_count, chosen.experts_used) == (searched.pruning.expert_count, searched.activation.used)
    assert (chosen.bytes, chosen.predicted_kld) == (searched.bytes, searched.predicted_kld)
    assert chosen.predicted_kld <= min(p.predicted_kld for p in _of(searched, "candidate"))


def test_every_candidate_holds_the_budget(searched: Plan) -> None:
    assert searched.budget is not None
    assert all(p.bytes <= searched.budget for p in _of(searched, "candidate"))
    assert all(p.measured_kld is None for p in searched.considered)


def test_order_is_by_bytes(searched: Plan) -> None:
    sizes = [p.bytes for p in searched.considered]
    assert sizes == sorted(sizes)


def test_the_front_falls(bench: Bench, searched: Plan) -> None:
    """More bytes, less KL divergence: no point of the front beats another in both."""
    front = _of(searched, "front")
    assert len(front) > 5
    for a, b in itertools.pairwise(front):
        assert a.bytes < b.bytes
        assert a.predicted_kld > b.predicted_kld
    assert front[-1].bytes > _budget(bench, 4.5)
    # At the budget it goes below no candidate, and above the best by less than a step.
    assert searched.predicted_kld is not None
    inside = [p for p in front if p.bytes <= _budget(bench, 4.5)]
    assert min(p.predicted_kld for p in inside) >= searched.predicted_kld - 1e-9


def test_a_point_of_the_front_is_a_plan_of_that_size(bench: Bench, searched: Plan) -> None:
    """Asked for a front point's bytes, the search makes a plan no worse than the point."""
    at = next(p for p in _of(searched, "front") if p.bytes > _budget(bench, 4.5))
    plan = bench.plan(at.bytes, types=FAST, experts_used="auto")
    assert plan.predicted_kld is not None
    assert plan.predicted_kld <= at.predicted_kld + 1e-6


def test_pruning_only_is_a_baseline(bench: Bench) -> None:
    """Q8_0 and as many experts as fit: one more group of them would not."""
    budget = _budget(bench, 6.5)
    plan = bench.plan(budget, types=FAST)
    (point,) = _of(plan, "baseline")
    assert point.label == "pruning only"
    assert point.bytes <= budget
    same = bench.plan(2 * budget, types=("Q8_0",), keep=str(point.expert_count))
    assert same.bytes == point.bytes
    assert same.predicted_kld == pytest.approx(point.predicted_kld)
    step = GROUPS if bench.topology.groups > 1 else 1
    assert bench.plan(2 * budget, types=("Q8_0",), keep=str(point.expert_count + step)).bytes > budget


@pytest.mark.slow  # builds the tables of IQ1_M
def test_the_papers_setting_is_a_baseline(bench: Bench) -> None:
    """Three quarters of the experts at IQ1_M, at its own bytes."""
    only = dict.fromkeys(("expert", "attention", "shared-expert", "ffn", "embedding", "output"), "Q4_K")
    plan = bench.plan(_budget(bench, 6), floors=only, ceilings=only)
    (point,) = [p for p in _of(plan, "baseline") if p.label == "paper"]
    assert (point.expert_count, point.experts_used) == (12, 3)
    rule = {
        "expert": "IQ1_M", "attention": "Q4_K", "shared-expert": "Q6_K", "ffn": "Q4_K", "embedding": "Q2_K",
        "output": "Q5_K",
    }  # fmt: skip
    tensors = {n: i for n, i in bench.checkpoint.tensors.items() if quantizable(i)}
    types = {n: fallback(rule[i.role], i.shape[-1]) for n, i in tensors.items()}
    candidates = _candidates(bench)
    assert point.bytes == candidates.finish(candidates.candidate(12, 3), types, {}).bytes
    table = ErrorTable(bench.checkpoint, {}, candidates.planning.imatrix, bench.kernels, 2, untold)
    errors = table.measure({n: (kind,) for n, kind in types.items()})
    predictor = predictor_of(candidates)
    cost = sum(predictor.weights[n] * errors[n][kind] for n, kind in types.items())
    assert point.predicted_kld == pytest.approx(predictor.total(cost, 12, 3))


def test_nothing_is_considered_where_nothing_is_open(bench: Bench) -> None:
    assert bench.plan(_budget(bench, 4), types=FAST, keep="12").considered == ()


def test_the_best_few_differ_in_experts(bench: Bench) -> None:
    plans = make_plans(bench.planning(_budget(bench, 4.5), types=FAST, experts_used="auto"), 3)
    assert len({(p.pruning.expert_count, p.activation.used) for p in plans}) == 3
    costs = [p.predicted_kld or 0.0 for p in plans]
    assert costs == sorted(costs)
    for plan in plans:
        assert plan.bytes <= _budget(bench, 4.5)
        (chosen,) = [p for p in plan.considered if p.chosen]
        assert chosen.expert_count == plan.pruning.expert_count
    assert plans[0] == bench.plan(_budget(bench, 4.5), types=FAST, experts_used="auto")


def test_other_allocators_are_compared_by_what_they_make(softmax: Bench) -> None:
    budget = _budget(softmax, 4.6)
    every = make_plans(softmax.planning(budget, allocator=UNIFORM, types=FAST), 13)
    made = {p.pruning.expert_count: p.predicted_kld for p in every}
    assert sorted(made) == list(range(4, 17))
    assert made == {p.expert_count: p.predicted_kld for p in _of(every[0], "candidate")}
    assert softmax.plan(budget, allocator=UNIFORM, types=FAST) == every[0]


def test_searched_top_k_is_recorded(softmax: Bench) -> None:
    plan = softmax.plan(_budget(softmax, 4), types=FAST, keep="12", experts_used="auto")
    assert plan.activation.rule == ("unchanged" if plan.activation.used == TOP_K else "searched")


# -- with probes


def _probed(bench: Bench, prune_kld: float, weight: float, attention: float | None = None) -> Bench:
    """Every tensor was probed to cost ``weight`` a unit of error, but attention's."""
    tensors = {n: info for n, info in bench.checkpoint.tensors.items() if quantizable(info)}
    types = tuple(
        GroupProbe((n,), 0.1, 0.1 * (weight if attention is None or info.role != "attention" else attention), 0)
        for n, info in tensors.items()
    )
    rule = _planning(bench).rule
    prunings = tuple(PruningProbe(rule, n, k, prune_kld, 0.001) for n, k in counts_to_weigh(_planning(bench))[1:])
    found = _found(bench, prunings, types)
    return dataclasses.replace(bench, sensitivity=SensitivitySource.of(found))


def test_measured_prunings_decide(bench: Bench) -> None:
    """Where pruning was measured to cost nothing, as many experts go as can; where much, none does."""
    cheap, dear = (_probed(bench, kld, 1.0).plan(_budget(bench, 4.5), types=FAST) for kld in (0.0, 100.0))
    assert cheap.pruning.expert_count == min(n for n, _ in counts_to_weigh(_planning(bench)))
    assert dear.pruning.expert_count == EXPERTS
    assert dear.prediction.startswith("probed: ")
    assert "not probed" in bench.plan(_budget(bench, 4.5), types=FAST, keep="12").prediction


def test_predicted_is_weights_times_errors_plus_pruning(bench: Bench) -> None:
    plan = _probed(bench, 0.25, 2.0).plan(_budget(bench, 4.5), types=FAST, keep="8")
    errors = sum(t.error or 0.0 for t in plan.tensors.values())
    assert plan.predicted_kld == pytest.approx(together(2.0 * errors) + 0.25)


def test_prunings_by_another_rule_do_not_count(softmax: Bench) -> None:
    probed = _probed(softmax, 100.0, 1.0)
    other = next(c for c in CRITERIA if c.name == "freq")
    costs = [
        probed.plan(_budget(softmax, 4.5), types=FAST, keep="12", criterion=c).predicted_kld
        for c in (CRITERIA[0], other)
    ]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0] > 100 > costs[1]


def test_what_was_measured_to_be_harmless_gets_the_smallest_type(bench: Bench) -> None:
    wide = [n for n, i in bench.checkpoint.tensors.items() if i.role == "attention" and i.shape[-1] % 256 == 0]
    wide = [n for n in wide if quantizable(bench.checkpoint.tensors[n])]
    plan = _probed(bench, 0.0, 1.0, attention=0.0).plan(_budget(bench, 5), types=FAST, keep="16")
    assert {plan.tensors[n].type for n in wide} == {"Q2_K"}


def test_floors_of_the_user_hold_with_probes(bench: Bench) -> None:
    probed = _probed(bench, 0.0, 1.0, attention=0.0)
    plan = probed.plan(_budget(bench, 5), types=FAST, keep="16", floors={"attention": "Q6_K"})
    lowest = min(
        TYPES[t.type].bits_per_weight
        for n, t in plan.tensors.items()
        if bench.checkpoint.tensors[n].role == "attention"
    )
    assert lowest >= TYPES["Q6_K"].bits_per_weight


def test_importance_is_borrowed_as_the_plan_says(softmax: Bench, tmp_path: Path) -> None:
    """The stats say nothing of it: a confirmed plan and the file made of it later are one."""
    plan = softmax.plan(_budget(softmax, 4), types=("Q2_K",), keep="16", borrow=5.0)
    assert plan.calibration is not None
    assert plan.calibration.borrow == 5.0
    out, name = tmp_path / "out.gguf", "blk.1.ffn_down_exps.weight"
    stats = softmax.source.stats
    compress(softmax.checkpoint, plan, stats, out, kernels=softmax.kernels, threads=1, report=untold)
    values, entry = softmax.checkpoint.read(name, expert=3), stats.imatrix[name]
    written = open_gguf(out).read_raw(name, expert=3).reshape(len(values), -1)
    np.testing.assert_array_equal(written, softmax.kernels.quantize(values, "Q2_K", entry.vector(3, 256, 5.0)))
    assert not np.array_equal(written, softmax.kernels.quantize(values, "Q2_K", entry.vector(3, 256, 0.0)))
