"""Plans on real files with ggml's kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.model_bench import Bench
from small_models.random_moe import EXPERTS, TOP_K, imagined_routing, imagined_stats

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, tensor_bytes
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.allocators.knapsack import UNIFORM
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.sources import StatsSource
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.stats.stats import LayerRouting, Stats

# K types are quantized in milliseconds; what depends on all types is in test_budget_is_used.
FAST = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
BY_NAME = {criterion.name: criterion for criterion in CRITERIA}


def _bytes(bench: Bench, bpw: float) -> int:
    return int(bpw * bench.topology.total_parameters / 8)


def _with(bench: Bench, **changes: object) -> StatsSource:
    return dataclasses.replace(bench.source, stats=dataclasses.replace(bench.source.stats, **changes))


def _types(bench: Bench, plan: Plan, role: Role) -> set[str]:
    return {t.type for name, t in plan.tensors.items() if bench.checkpoint.tensors[name].role == role}


# -- budgets


@pytest.mark.slow  # the tables of the IQ1 types alone take some ten seconds
@pytest.mark.parametrize("bpw", [1.9, 2.1, 2.5, 3.0, 3.5, 4.5, 6.0, 8.0])
def test_budget_is_used(bench: Bench, bpw: float) -> None:
    """Never over, and 99.5 % of it spent (types up to Q8_0 are finer than these budgets)."""
    budget = _bytes(bench, bpw)
    plan = bench.plan(budget)
    assert 0.995 * budget <= plan.bytes <= budget
    assert plan.bytes == artifact_layout(bench.checkpoint, plan).total
    assert plan.bits_per_weight == pytest.approx(plan.bytes * 8 / bench.topology.total_parameters)


@pytest.mark.parametrize("bpw", [3.7, 4.6, 5.3])
@pytest.mark.parametrize("keep", ["auto", "0.75"])
def test_budget_is_never_missed(bench: Bench, bpw: float, keep: str) -> None:
    budget = _bytes(bench, bpw if keep == "auto" else bpw * 0.75)
    plan = bench.plan(budget, types=FAST, keep=keep)
    assert 0.99 * budget <= plan.bytes <= budget
    for name, tensor in plan.tensors.items():
        info = bench.checkpoint.tensors[name]
        kept = plan.pruning.expert_count if info.by_expert else info.shape[0]
        assert tensor.nbytes == tensor_bytes(tensor.type, (kept, *info.shape[1:]) if info.by_expert else info.shape)


def test_one_byte_less_is_another_plan(bench: Bench) -> None:
    plan = bench.plan(_bytes(bench, 4.5), types=FAST)
    assert bench.plan(plan.bytes, types=FAST).bytes == plan.bytes
    assert bench.plan(plan.bytes - 1, types=FAST).bytes < plan.bytes


def test_more_bytes_never_cost_more(bench: Bench) -> None:
    costs = [bench.plan(_bytes(bench, bpw), types=FAST).predicted_kld for bpw in (4.6, 5.0, 5.5, 6.5, 8.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


@pytest.mark.slow  # measures all types
def test_the_best_is_kept_where_everything_fits(bench: Bench) -> None:
    plan = bench.plan(2 * _bytes(bench, 16))
    assert plan.predicted_kld == 0
    assert {n: t.type for n, t in plan.tensors.items()} == {n: i.type.name for n, i in bench.checkpoint.tensors.items()}


def test_same_inputs_same_plan(bench: Bench) -> None:
    budget = _bytes(bench, 4.5)
    assert bench.plan(budget, types=FAST, threads=1) == bench.plan(budget, types=FAST, threads=3)


def test_no_budget(bench: Bench) -> None:
    with pytest.raises(CollabError, match="`budget` is missing"):
        bench.plan(None)


# -- which types


def test_what_is_never_quantized(bench: Bench) -> None:
    plan = bench.plan(_bytes(bench, 4.5), types=FAST)
    for name, tensor in plan.tensors.items():
        info = bench.checkpoint.tensors[name]
        if info.role in (Role.ROUTER, Role.ROUTER_BIAS, Role.NORM) or len(info.shape) == 1:
            assert tensor.type == info.type.name
            assert tensor.error == 0
        else:
            assert tensor.type != info.type.name


def test_floor_and_ceiling(bench: Bench) -> None:
    plan = bench.plan(
        _bytes(bench, 5), types=FAST, floors={"attention": "Q6_K"}, ceilings={"expert": "Q4_K"}, base="Q3_K"
    )
    bits = {role: [TYPES[kind].bits_per_weight for kind in _types(bench, plan, role)] for role in Role}
    narrow = {  # rows that Q6_K's blocks of 256 do not divide fall back to Q8_0
        i.name for i in bench.checkpoint.tensors.values() if i.role == Role.ATTENTION and i.shape[-1] % 256
    }
    assert min(bits[Role.ATTENTION]) >= TYPES["Q6_K"].bits_per_weight
    assert {plan.tensors[name].type for name in narrow} <= {"Q8_0"}
    assert max(bits[Role.EXPERT]) <= TYPES["Q4_K"].bits_per_weight
    assert min(bits[Role.EXPERT]) >= TYPES["Q3_K"].bits_per_weight


def test_base_is_never_broken(bench: Bench) -> None:
    with pytest.raises(CollabError, match=r"no plan holds .* or `base`"):
        bench.plan(_bytes(bench, 1), types=FAST, base="Q6_K")


def test_without_statistics_no_type_that_wants_them(bench: Bench) -> None:
    plan = bench.plan(_bytes(bench, 3.2), source=None, types=("IQ2_XXS", "IQ3_XXS", "Q2_K", "Q3_K", "Q4_K"))
    assert not any(TYPES[t.type].wants_imatrix for t in plan.tensors.values())
    assert plan.calibration is None


def test_types_that_want_a_vector_become_larger_ones_without(bench: Bench) -> None:
    """The stats have no vector for the output matrix; the embedding is looked up, all of its columns count alike."""
    plan = bench.plan(_bytes(bench, 4), types=("IQ2_XXS",))
    assert [plan.tensors[name].type for name in ("token_embd.weight", "output.weight")] == ["IQ2_XXS", "Q2_K"]
    assert _types(bench, plan, Role.EXPERT) == {"IQ2_XXS"}


def test_uniform_is_one_type(softmax: Bench) -> None:
    plan = softmax.plan(_bytes(softmax, 4.6), allocator=UNIFORM, types=FAST)
    quantized = {t.type for n, t in plan.tensors.items() if t.type != softmax.checkpoint.tensors[n].type.name}
    assert quantized == {"Q4_K"}
    assert plan.bytes <= _bytes(softmax, 4.6)


def test_knapsack_predicts_less_cost_than_uniform(bench: Bench) -> None:
    uniform = bench.plan(_bytes(bench, 4.6), allocator=UNIFORM, types=FAST)
    ours = bench.plan(uniform.bytes, types=FAST)
    assert ours.predicted_kld is not None
    assert uniform.predicted_kld is not None
    assert ours.predicted_kld < uniform.predicted_kld


def test_errors_fall_with_bits(bench: Bench) -> None:
    small, large = (bench.plan(_bytes(bench, 16), types=(kind,)) for kind in ("Q4_K", "Q8_0"))
    for name, tensor in small.tensors.items():
        if tensor.type == "Q4_K":
            more = large.tensors[name].error
            assert tensor.error is not None
            assert more is not None
            assert 0 < more < tensor.error < 0.05


# -- the smallest


@pytest.mark.slow  # measures all types
def test_the_smallest_file_has_the_smallest_types(bench: Bench) -> None:
    """Just above the smallest file there is, only a quarter of the experts fit, at the smallest type; half, where
    groups need two each."""
    plan = bench.plan(_smallest(bench) + 4000)
    part = 4 if bench.topology.groups == 1 else 2
    assert plan.pruning.expert_count == EXPERTS // part
    assert plan.activation.used == max(1, TOP_K // part)
    assert plan.base == "IQ1_S"


def _smallest(bench: Bench, **options: object) -> int:
    with pytest.raises(CollabError) as error:
        bench.plan(1, **options)
    message = str(error.value)
    assert message.startswith("no plan holds 1 bytes: the smallest ")
    assert "\n" not in message
    return int(message.split(" takes ")[1].split(" bytes")[0].replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"keep": "12"}, {"base": "Q3_K"}, {"types": FAST}])
def test_the_smallest_budget_named_holds(bench: Bench, options: dict[str, object]) -> None:
    smallest = _smallest(bench, **options)
    assert bench.plan(smallest, **options).bytes == smallest
    with pytest.raises(CollabError, match=f"takes {smallest:,} bytes"):
        bench.plan(smallest - 1, **options)


def test_given_counts_are_not_pruned_further(bench: Bench) -> None:
    with pytest.raises(CollabError, match=r"the smallest with `keep` 12 takes .* or lower `keep`"):
        bench.plan(1, keep="12")


def test_without_statistics_nothing_is_pruned(bench: Bench) -> None:
    with pytest.raises(CollabError, match=f"the smallest with {EXPERTS} experts a layer"):
        bench.plan(1, source=None)


# -- pruning


def test_pruned_plan(bench: Bench) -> None:
    plan = bench.plan(_bytes(bench, 4), types=FAST, keep="0.75")
    p, t = plan.pruning, bench.topology
    assert p.expert_count == 12
    assert p.criterion == "freq-score"
    assert (p.options, p.order, p.layers) == ({"alpha": 0.5}, "original", "same")
    assert p.normalisation == "layer-max"
    assert p.group_policy == ("balanced" if t.groups > 1 else "none")
    assert set(p.kept) == set(t.moe_layers)
    assert plan.activation.used == 3
    assert plan.activation.rule == "share"
    arch = t.architecture
    assert plan.metadata == {f"{arch}.expert_count": 12, f"{arch}.expert_used_count": 3}
    routing = bench.source.stats.routing
    lost = [1 - routing[n].count[list(kept)].sum() / routing[n].count.sum() for n, kept in p.kept.items()]
    assert p.mass_lost == pytest.approx(np.mean(lost))


def test_experts_used_is_given(bench: Bench) -> None:
    plan = bench.plan(_bytes(bench, 4), types=FAST, keep="12", experts_used=4)
    assert (plan.activation.used, plan.activation.rule) == (4, "given")
    assert f"{bench.topology.architecture}.expert_used_count" not in plan.metadata
    with pytest.raises(CollabError, match="13 experts a token cannot come from"):
        bench.plan(_bytes(bench, 4), types=FAST, keep="12", experts_used=13)


def test_group_limited_k(grouped: Bench) -> None:
    with pytest.raises(
        CollabError, match="7 experts a token cannot come from 2 groups of 3; lower `experts_used` to 6"
    ):
        grouped.plan(_bytes(grouped, 4), keep="12", experts_used=7)


def test_disband(grouped: Bench) -> None:
    plan = grouped.plan(_bytes(grouped, 4), types=FAST, keep="10", groups="disband")
    assert plan.pruning.group_policy == "disband"
    assert plan.metadata["deepseek2.expert_group_count"] is None
    assert plan.metadata["deepseek2.expert_group_used_count"] is None
    assert any(note.startswith("ROUTING CHANGES: the 4 expert groups are disbanded") for note in plan.notes)


@pytest.mark.parametrize("policy", ["balanced", "disband"])
def test_no_groups_to_speak_of(softmax: Bench, policy: str) -> None:
    with pytest.raises(CollabError, match="router has no groups"):
        softmax.plan(_bytes(softmax, 4), groups=policy)


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"auto"}))  # which is one of the others
def test_criteria_choose_differently(softmax: Bench, name: str) -> None:
    plan = softmax.plan(None, keep_types=True, keep="8", criterion=BY_NAME[name])
    assert plan.pruning.criterion == name
    others = [
        softmax.plan(None, keep_types=True, keep="8", criterion=other).pruning.kept
        for other in CRITERIA
        if other.name not in (name, "auto")
    ]
    assert plan.pruning.kept not in others


def test_alpha_is_recorded_and_matters(softmax: Bench) -> None:
    plans = [softmax.plan(None, keep_types=True, keep="8", criterion_options={"alpha": alpha}) for alpha in (0.0, 1.0)]
    assert [plan.pruning.options["alpha"] for plan in plans] == [0.0, 1.0]
    assert plans[0].pruning.kept != plans[1].pruning.kept


def test_reordering_alone(bench: Bench) -> None:
    """All experts stay, the most important of each group first; nothing else changes."""
    plan = bench.plan(None, keep_types=True, order="importance", criterion=BY_NAME["freq"])
    t, routing = bench.topology, bench.source.stats.routing
    assert plan.pruning.order == "importance"
    assert (plan.pruning.expert_count, plan.activation.used, plan.metadata) == (EXPERTS, TOP_K, {})
    assert plan.pruning.mass_lost == 0
    for layer, kept in plan.pruning.kept.items():
        for at in range(0, EXPERTS, t.experts_per_group):
            group = kept[at : at + t.experts_per_group]
            assert sorted(group) == list(range(at, at + t.experts_per_group))
            assert (np.diff(routing[layer].count[list(group)]) <= 0).all()
    with pytest.raises(CollabError, match="need statistics"):
        bench.plan(None, source=None, keep_types=True, order="importance")


def test_unseen_experts_are_counted(softmax: Bench) -> None:
    stats = imagined_stats(softmax.checkpoint, never=(3, 5))
    source = dataclasses.replace(softmax.source, stats=stats)
    plan = softmax.plan(None, source=source, keep_types=True, keep="4")
    assert plan.calibration is not None
    assert plan.calibration.unseen == 4  # two in each of two layers
    assert "4 experts were never seen in calibration; their importance is unknown" in plan.notes
    dropped = sum(2 - len({3, 5} & set(kept)) for kept in plan.pruning.kept.values())
    assert dropped
    assert any(note.startswith(f"{dropped} of the dropped experts were never seen") for note in plan.notes)


def test_too_few_tokens(bench: Bench) -> None:
    stats = imagined_stats(bench.checkpoint, tokens=60)
    source = dataclasses.replace(bench.source, stats=stats)
    with pytest.raises(CollabError, match=r"too few calibration tokens to prune on.*about 200 tokens"):
        bench.plan(None, source=source, keep_types=True, keep="12")
    plan = bench.plan(None, source=source, keep_types=True, keep="12", allow_few_tokens=True)
    assert plan.pruning.expert_count == 12
    assert bench.plan(None, source=source, keep_types=True).pruning.expert_count == EXPERTS


def test_pruning_needs_statistics(bench: Bench) -> None:
    with pytest.raises(CollabError, match="need statistics: calibrate"):
        bench.plan(None, source=None, keep_types=True, keep="12")


# -- statistics of something else


def test_stats_of_another_model(softmax: Bench, grouped: Bench) -> None:
    with pytest.raises(CollabError, match=r"calibrated on another model than .*model\.gguf; calibrate this one"):
        softmax.plan(_bytes(softmax, 4), source=grouped.source)


def test_foreign_imatrix_of_another_model(softmax: Bench, grouped: Bench) -> None:
    for bench, other in ((softmax, grouped), (grouped, softmax)):
        names = {f"{name}.elsewhere": entry for name, entry in other.source.stats.imatrix.items()}
        with pytest.raises(CollabError, match="it is of another model"):
            bench.plan(_bytes(bench, 4), source=_with(bench, model_id=None, imatrix=names))


def test_another_number_of_experts(softmax: Bench) -> None:
    short = {n: LayerRouting(r.tokens, r.count[:8]) for n, r in softmax.source.stats.routing.items()}
    with pytest.raises(CollabError, match=r"8 experts in layer 0, .* has 16"):
        softmax.plan(_bytes(softmax, 4), source=_with(softmax, model_id=None, routing=short))


def test_another_width(softmax: Bench) -> None:
    imatrix = dict(softmax.source.stats.imatrix)
    entry = imatrix["blk.0.attn_q.weight"]
    imatrix["blk.0.attn_q.weight"] = dataclasses.replace(entry, sum2=entry.sum2[:, :128])
    with pytest.raises(CollabError, match=r"does not fit .*blk\.0\.attn_q\.weight"):
        softmax.plan(_bytes(softmax, 4), source=_with(softmax, imatrix=imatrix))


# -- an imatrix that others published


def _published(stats: Stats) -> Stats:
    routing = {n: LayerRouting(0, r.count) for n, r in stats.routing.items()}
    return dataclasses.replace(stats, routing=routing, model_id=None, engine="imatrix of another tool")


def test_published_imatrix_is_frequency_only(bench: Bench) -> None:
    source = dataclasses.replace(bench.source, stats=_published(bench.source.stats))
    plan = bench.plan(_bytes(bench, 4), source=source, types=FAST, keep="12")
    assert plan.pruning.criterion == "freq"
    assert plan.calibration is not None
    assert plan.calibration.frequency_only
    assert any(note.startswith("FREQUENCY ONLY") for note in plan.notes)
    by_frequency = bench.plan(_bytes(bench, 4), types=FAST, keep="12", criterion=BY_NAME["freq"])
    assert plan.pruning.kept == by_frequency.pruning.kept


@pytest.mark.parametrize(("name", "need"), [("reap", "reap_sum"), ("score", "weight_sum")])
def test_criteria_that_a_published_imatrix_cannot_serve(bench: Bench, name: str, need: str) -> None:
    source = dataclasses.replace(bench.source, stats=_published(bench.source.stats))
    with pytest.raises(CollabError, match=f"criterion {name} needs {need}"):
        bench.plan(_bytes(bench, 4), source=source, criterion=BY_NAME[name])


# -- keeping stored types


def test_keep_types_prunes_without_quantizing(bench: Bench) -> None:
    plan = bench.plan(None, keep_types=True, keep="12")
    for name, tensor in plan.tensors.items():
        info = bench.checkpoint.tensors[name]
        assert tensor.type == info.type.name
        assert tensor.error == 0
        assert tensor.nbytes == (info.nbytes * 12 // EXPERTS if info.by_expert else info.nbytes)
    assert plan.allocator == "none"
    assert plan.bytes == artifact_layout(bench.checkpoint, plan).total
    assert plan.predicted_kld is None


def test_keep_types_checks_a_budget(bench: Bench) -> None:
    plan = bench.plan(None, keep_types=True, keep="12")
    assert bench.plan(plan.bytes, keep_types=True, keep="12").bytes == plan.bytes
    with pytest.raises(CollabError, match=f"with `keep_types` the file takes {plan.bytes:,} bytes"):
        bench.plan(plan.bytes - 1, keep_types=True, keep="12")


def test_fingerprint_is_of_what_decides_the_bytes(bench: Bench) -> None:
    plan = bench.plan(None, keep_types=True, keep="12")
    assert plan_fingerprint(bench.plan(plan.bytes + 10**6, keep_types=True, keep="12")) == plan_fingerprint(plan)
    assert plan_fingerprint(bench.plan(None, keep_types=True)) != plan_fingerprint(plan)
    other = imagined_routing(2000, 99)
    stats = dataclasses.replace(bench.source.stats, routing=dict.fromkeys(bench.source.stats.routing, other))
    source = dataclasses.replace(bench.source, stats=stats)
    assert plan_fingerprint(bench.plan(None, source=source, keep_types=True, keep="12")) != plan_fingerprint(plan)


def test_versions_are_recorded(bench: Bench, kernels: GgmlKernels) -> None:
    versions = bench.plan(None, keep_types=True).versions
    assert versions["kernels"] == kernels.version()
    assert {"collab-plugin", "gguf", "numpy", "scipy"} <= set(versions)
