"""`--layers varied`: each layer keeps its own number of experts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from hypothesis import given
from hypothesis import strategies as st
from small_models.model_bench import Bench, make_bench
from small_models.random_moe import EXPERTS, imagined_stats, write_deepseek2
from test_planner import FAST, _bytes
from test_pruning import FREQ, counted, topology

from collab_plugin.cli import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.planning.criteria.criterion import CriterionOptions
from collab_plugin.planning.pruning import check_servable, choose, fewest_servable, shares_of
from collab_plugin.planning.sources import StatsSource
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_diff import Pair, diff_plans
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan, write_plan

BY_LAYER = ("expert-count-by-layer",)


def run(*args: str | int | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


# -- who stays


def test_experts_of_all_layers_compete() -> None:
    """Layer 0 has two experts that do all the work, layer 1 shares it: each is scaled to its own best."""
    routing = {0: counted(100, 90, 1, 1, 1, 1), 1: counted(8, 8, 8, 7, 7, 2)}
    chosen = choose(routing, topology(6, 2, layers=2), 3, "none", FREQ, CriterionOptions(), fewest=1)
    assert chosen.kept == {0: (0, 1), 1: (0, 1, 2, 3)}


def test_no_layer_keeps_fewer_than_it_must() -> None:
    routing = {0: counted(100, 1, 1, 1, 1, 1), 1: counted(8, 8, 8, 7, 7, 7)}
    chosen = choose(routing, topology(6, 2, layers=2), 3, "none", FREQ, CriterionOptions(), fewest=2)
    assert chosen.kept == {0: (0, 1), 1: (0, 1, 2, 3)}


def _scores(data: st.DataObject, layers: int, groups: int, size: int) -> dict[int, np.ndarray]:
    values = st.lists(st.integers(0, 9), min_size=groups * size, max_size=groups * size)
    return {n: np.array(data.draw(values), np.float64).reshape(groups, size) / 9 for n in range(layers)}


@given(st.data())
def test_kept_scores_sum_to_the_most_that_is_possible(data: st.DataObject) -> None:
    groups, size, layers = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    fewest = data.draw(st.integers(1, size))
    mean = data.draw(st.integers(fewest, size))
    scores = _scores(data, layers, groups, size)
    shares = shares_of(scores, mean, fewest)
    assert sum(shares.values()) == mean * layers
    assert all(fewest <= share <= size for share in shares.values())

    def worth(numbers: tuple[int, ...]) -> float:
        return sum(float(np.sort(scores[n], axis=1)[:, size - k :].sum()) for n, k in enumerate(numbers))

    possible = itertools.product(range(fewest, size + 1), repeat=layers)
    best = max(worth(numbers) for numbers in possible if sum(numbers) == mean * layers)
    assert worth(tuple(shares[n] for n in range(layers))) == pytest.approx(best)


@given(st.data())
def test_a_larger_mean_takes_no_expert_away(data: st.DataObject) -> None:
    size, layers = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 5))
    fewest = data.draw(st.integers(1, size - 1))
    mean = data.draw(st.integers(fewest, size - 1))
    scores = _scores(data, layers, 1, size)
    fewer, more = shares_of(scores, mean, fewest), shares_of(scores, mean + 1, fewest)
    assert all(fewer[n] <= more[n] for n in scores)


@given(st.data())
def test_layers_that_are_alike_keep_as_many(data: st.DataObject) -> None:
    size, layers = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    mean = data.draw(st.integers(1, size))
    scores = dict.fromkeys(range(layers), _scores(data, 1, 1, size)[0])
    assert set(shares_of(scores, mean, 1).values()) == {mean}


@given(st.data())
def test_groups_stay_balanced_in_every_layer(data: st.DataObject) -> None:
    groups, size, layers = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(2, 6)), 3
    t = topology(groups * size, groups=groups, layers=layers)
    fewest = data.draw(st.integers(1, size))
    mean = data.draw(st.integers(fewest, size))
    counts = st.lists(st.integers(0, 100), min_size=t.expert_count, max_size=t.expert_count)
    routing = {layer: counted(*data.draw(counts)) for layer in range(layers)}
    chosen = choose(routing, t, mean * groups, "balanced", FREQ, CriterionOptions(), fewest=fewest * groups)
    assert sum(map(len, chosen.kept.values())) == mean * groups * layers
    for kept in chosen.kept.values():
        a_group = len(kept) // groups
        assert [i // size for i in kept] == [at // a_group for at in range(len(kept))]
        assert len(kept) >= fewest * groups


@given(st.data())
def test_fewest_is_what_the_router_can_just_serve(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4, 8]))
    t = topology(64, groups=groups, groups_used=data.draw(st.integers(1, groups)))
    policy = data.draw(st.sampled_from(["balanced", "disband"])) if groups > 1 else "none"
    used = data.draw(st.integers(1, 8))
    step = groups if policy == "balanced" else 1
    count = fewest_servable(t, used, policy)
    check_servable(t, count, used, policy)
    assert count % step == 0
    with pytest.raises(CollabError):
        check_servable(t, count - step, used, policy)


# -- the plan


@pytest.fixture(scope="module", params=["softmax", "groups"])
def layered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: GgmlKernels) -> Bench:
    """Two layers with 16 experts each: without groups, and in 4 groups of which 2 are used."""
    if request.param == "softmax":
        found: Bench = request.getfixturevalue("softmax")
        return found
    return make_bench(tmp_path_factory.mktemp("groups"), functools.partial(write_deepseek2, blocks=3), kernels)


@pytest.fixture(scope="module")
def skewed(layered: Bench) -> StatsSource:
    """Statistics in which the first layer works with few experts and the last with all."""
    stats = imagined_stats(layered.checkpoint)
    routing = dict(stats.routing)
    first = routing[min(routing)]
    rank = np.argsort(np.argsort(-first.count))
    fade = 0.6**rank
    assert first.weight_sum is not None
    routing[min(routing)] = dataclasses.replace(
        first, count=(first.count[rank == 0] * 4 * fade).astype(np.int64) + 60, weight_sum=first.weight_sum * fade
    )
    return dataclasses.replace(layered.source, stats=dataclasses.replace(layered.source.stats, routing=routing))


@pytest.fixture(scope="module")
def varied(layered: Bench, skewed: StatsSource) -> Plan:
    return layered.plan(_bytes(layered, 4.0), source=skewed, types=FAST, keep="12", layers="varied")


def test_layers_keep_their_own_numbers_with_the_mean_asked_for(layered: Bench, varied: Plan) -> None:
    counts = varied.pruning.counts
    assert len(set(counts)) > 1
    assert sum(counts) == 12 * len(layered.topology.moe_layers)
    assert varied.pruning.expert_count == 12
    assert min(counts) >= fewest_servable(layered.topology, varied.activation.used, varied.pruning.group_policy)
    assert all(count % layered.topology.groups == 0 for count in counts)


def test_the_plan_says_what_it_requires(varied: Plan, tmp_path: Path) -> None:
    assert varied.requires == BY_LAYER
    assert any(note.startswith("ONLY vLLM RUNS IT") for note in varied.notes)
    assert not any(key.endswith("expert_count") for key in varied.metadata), "no one number is true of all layers"
    write_plan(tmp_path / "plan.json", varied)
    assert read_plan(tmp_path / "plan.json") == varied
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["requires"] == list(BY_LAYER)
    (tmp_path / "plan.json").write_text(json.dumps(data | {"requires": []}))
    with pytest.raises(CollabError, match=r"\$\.pruning\.kept\.\d+ lists \d+ experts, not 12"):
        read_plan(tmp_path / "plan.json")
    data["pruning"]["expert_count"] = 11
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CollabError, match="expert_count is 11, which is not the mean"):
        read_plan(tmp_path / "plan.json")


def test_bytes_are_what_the_tensors_would_take(layered: Bench, varied: Plan) -> None:
    assert varied.budget is not None
    assert 0.99 * varied.budget <= varied.bytes <= varied.budget
    assert varied.bytes == artifact_layout(layered.checkpoint, varied).total
    by_layer = dict(varied.pruning.kept)
    for name, tensor in varied.tensors.items():
        info = layered.checkpoint.tensors[name]
        kept = len(by_layer[info.layer or 0]) if info.by_expert else info.shape[0]
        assert tensor.nbytes == tensor_bytes(tensor.type, (kept, *info.shape[1:]))


def test_pruning_costs_less_than_with_the_same_count(layered: Bench, skewed: StatsSource) -> None:
    """Of the criterion's own kind, which is what competes: selections by frequency."""
    lost = [
        layered.plan(None, source=skewed, keep_types=True, keep="12", criterion=FREQ, layers=layers).pruning.mass_lost
        for layers in ("varied", "same")
    ]
    assert lost[0] is not None and lost[1] is not None
    assert lost[0] < lost[1]


def test_all_experts_are_all_experts(layered: Bench) -> None:
    plans = [layered.plan(None, keep_types=True, layers=layers) for layers in ("varied", "same")]
    assert plans[0] == plans[1]
    assert plans[0].requires == ()


def test_numbers_that_come_out_alike_require_nothing(softmax: Bench) -> None:
    stats = softmax.source.stats
    alike = dataclasses.replace(stats, routing=dict.fromkeys(stats.routing, stats.routing[0]))
    source = dataclasses.replace(softmax.source, stats=alike)
    plan = softmax.plan(None, source=source, keep_types=True, keep="12", layers="varied")
    assert plan.requires == ()
    assert plan.metadata[f"{plan.source.architecture}.expert_count"] == 12


def test_the_search_weighs_means(layered: Bench, skewed: StatsSource) -> None:
    plan = layered.plan(_bytes(layered, 2.8), source=skewed, types=("Q2_K", "Q4_K"), layers="varied")
    assert plan.considered
    assert {p.kind for p in plan.considered} == {"candidate", "front"}
    assert plan.bytes <= _bytes(layered, 2.8)
    if plan.pruning.expert_count < EXPERTS:
        assert sum(plan.pruning.counts) == plan.pruning.expert_count * len(plan.pruning.kept)


def test_difference_to_a_plan_with_the_same_count(layered: Bench, skewed: StatsSource) -> None:
    same, varied = (
        layered.plan(None, source=skewed, keep_types=True, keep="12", layers=layers) for layers in ("same", "varied")
    )
    diff = diff_plans(same, varied)
    assert diff.values["requires"] == Pair("", "expert-count-by-layer")
    assert diff.values["experts a layer"] == Pair("12", varied.pruning.span)
    assert "expert_count" not in diff.values
    assert set(diff.kept_only_in_b) <= set(varied.pruning.kept)
    assert plan_fingerprint(same) != plan_fingerprint(varied)


# -- what cannot run it says so


def test_nothing_writes_it(layered: Bench, varied: Plan, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match=r"keeps \d+ to \d+ \(mean 12\) experts a layer, and a GGUF has one number"):
        compress(
            layered.checkpoint, varied, None, tmp_path / "out.gguf", kernels=None, threads=1, report=lambda *a: None
        )
    write_plan(tmp_path / "plan.json", varied)
    before = set(tmp_path.iterdir())
    for how, what in (("gguf", "a GGUF"), ("safetensors", "a config.json")):
        done = run("compress", layered.path, "--plan", tmp_path / "plan.json", "--format", how, "-o", tmp_path / "out")
        assert done.exit_code == 2
        assert f"{what} has one number for all layers" in done.output
        assert len(done.output.strip().splitlines()) == 1
        assert "load format collab" in done.output
        assert set(tmp_path.iterdir()) == before


def test_it_is_not_confirmed(softmax: Bench, tmp_path: Path, text: Path) -> None:
    done = run(
        "plan", softmax.path, "--stats", softmax.stats_path, "--budget", "4bpw", "--layers", "varied",
        "--confirm", 1, "--text", text, "-o", tmp_path / "plan.json",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "which have one number of experts for all layers" in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_the_numbers_and_the_report_too(softmax: Bench, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = run(
        "plan", softmax.path, "--stats", softmax.stats_path, "--keep", "9", "--keep-types", "--layers", "varied",
        "-o", path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = read_plan(path)
    assert plan.requires == BY_LAYER
    assert f"experts kept a layer: {plan.pruning.span} (freq-score" in done.output
    shown = run("report", path, "--stats", softmax.stats_path, "-o", tmp_path / "report.html")
    assert shown.exit_code == 0, shown.output
    page = (tmp_path / "report.html").read_text()
    assert f"The experts of all layers compete: {plan.pruning.span} of 16 stay in a layer" in page
    assert "No file holds a number of experts for each layer" in page
    terminal = run("report", path, "--stats", softmax.stats_path)
    for count in plan.pruning.counts:
        assert f"{count} of 16 kept" in terminal.output
