"""What repair leaves of each type's error is measured on the plan's samples, once, and decides between types."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_models.model_bench import Bench

from collab_plugin.checkpoint.identity import model_id
from collab_plugin.errors import CollabError
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import REAL_ERRORS, predictor_of
from collab_plugin.planning.repaired_errors import NONE, RepairedErrors, repaired_errors
from collab_plugin.planning.search import make_plans
from collab_plugin.planning.sources import SamplesSource, SensitivitySource
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import writing_samples
from collab_plugin.stats.sensitivity import GroupProbe, Sensitivity, TogetherProbe

TYPES = ("Q2_K", "Q4_K", "Q6_K")
CTX = 32


@pytest.fixture(scope="module")
def samples(softmax: Bench, tmp_path_factory: pytest.TempPathFactory) -> SamplesSource:
    """Of inputs of low rank, as those of real models are."""
    path, t = tmp_path_factory.mktemp("samples") / "samples.gguf", softmax.topology
    width = softmax.checkpoint.tensors["token_embd.weight"].shape[-1]
    random, tokens = np.random.default_rng(0), 1600
    with writing_samples(
        path, t.moe_layers, tokens, width, ctx=CTX, model_id=model_id(softmax.checkpoint), engine="none"
    ) as layers:
        for layer, sample in layers.items():
            inputs = (random.standard_normal((tokens, 24)) @ random.standard_normal((24, width))).astype(np.float32) / 5
            block = RoutedBlock(softmax.checkpoint, t, layer)
            choice = block.choose(inputs, tuple(range(t.expert_count)), t.experts_used, grouped=False)
            sample.inputs[:], sample.outputs[:] = inputs, block.outputs(inputs, choice)
    return SamplesSource.read(path)


def planning_of(bench: Bench, samples: SamplesSource | None, threads: int = 2) -> PlanningInput:
    planning = bench.planning(10**9, types=TYPES, threads=threads)
    return dataclasses.replace(planning, samples_source=samples)


def test_there_is_a_share_for_every_type(softmax: Bench, samples: SamplesSource) -> None:
    found = repaired_errors(planning_of(softmax, samples))
    assert set(found.shares) == {(f"expert {side}", kind) for side in ("down", "gate/up") for kind in TYPES}
    assert all(0.01 < share < 1.5 for seen in found.shares.values() for share in seen.values())
    assert 1 <= found.experts <= 4
    seen = found.shares["expert down", "Q4_K"]
    assert min(seen.values()) <= found.left("blk.1.ffn_down_exps.weight", "Q4_K") <= max(seen.values())
    assert found.left("blk.1.attn_q.weight", "Q4_K") == 1
    assert "repair leaves 0." in found.source


def test_they_are_the_same_for_any_number_of_threads_and_from_the_cache(
    softmax: Bench, samples: SamplesSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    one = repaired_errors(planning_of(softmax, samples, threads=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    three = repaired_errors(planning_of(softmax, samples, threads=3))
    assert list((tmp_path / "two").rglob("errors.sqlite")), "remembered"
    assert one == three == repaired_errors(planning_of(softmax, samples))


def test_without_samples_or_new_types_nothing_is_measured(softmax: Bench, samples: SamplesSource) -> None:
    assert repaired_errors(planning_of(softmax, None)) is NONE
    kept = dataclasses.replace(softmax.planning(None, keep_types=True), samples_source=samples)
    assert repaired_errors(kept) is NONE


@pytest.mark.parametrize(
    ("width", "shift", "line"),
    [(128, 0, "layer 0 takes 256 values a token, they hold 128"), (256, 1, "layer 0 computes other outputs")],
)
def test_samples_that_do_not_fit_are_refused(
    width: int, shift: float, line: str, softmax: Bench, samples: SamplesSource, tmp_path: Path
) -> None:
    path, layers = tmp_path / "samples.gguf", list(samples.samples.layers)
    identity = model_id(softmax.checkpoint)
    with writing_samples(path, layers, 64, width, ctx=CTX, model_id=identity, engine="none") as made:
        for layer, sample in made.items():
            old = samples.samples.layers[layer]
            sample.inputs[:], sample.outputs[:] = old.inputs[:64, :width], shift + 1 - old.outputs[:64, :width]
    with pytest.raises(CollabError, match=line):
        repaired_errors(planning_of(softmax, SamplesSource.read(path)))


def test_layers_between_those_looked_at() -> None:
    tensors = {f"blk.{layer}.ffn_down_exps.weight": ("expert down", layer) for layer in range(8)}
    errors = RepairedErrors({("expert down", "Q2_K"): {1: 0.1, 5: 0.5}}, tensors, 4)
    found = [errors.left(name, "Q2_K") for name in tensors]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])
    assert errors.left("blk.3.ffn_down_exps.weight", "Q4_K") == errors.left("blk.3.ffn_up_exps.weight", "Q2_K") == 1


def test_a_type_that_repair_helps_most_is_chosen(softmax: Bench, samples: SamplesSource) -> None:
    planning = planning_of(softmax, samples)
    budget = softmax.plan(10**9, types=TYPES).bytes // 2
    planning = dataclasses.replace(planning, request=dataclasses.replace(planning.request, budget=budget, keep="100%"))
    tensors = {n: ("expert down", 0) for n in softmax.checkpoint.tensors if "ffn_down_exps" in n}
    helped = RepairedErrors({("expert down", "Q2_K"): {0: 1e-4}}, tensors, 1)
    (plain,), (better,) = make_plans(planning, 1, repaired=NONE), make_plans(planning, 1, repaired=helped)
    chosen = {plan.tensors[name].type for plan in (better,) for name in tensors}
    assert chosen == {"Q2_K"}
    assert {plain.tensors[name].type for name in tensors} != {"Q2_K"}
    assert "repair leaves" in better.prediction
    assert "repair leaves" not in plain.prediction


def test_files_of_others_are_not_repaired(softmax: Bench, samples: SamplesSource) -> None:
    """What is predicted for "pruning only" does not depend on samples."""
    request = dataclasses.replace(softmax.planning(10**9, types=(*TYPES, "Q8_0")).request, budget=_size(softmax))
    plain = dataclasses.replace(softmax.planning(10**9), request=request)
    sampled = dataclasses.replace(plain, samples_source=samples)
    tensors = {n: ("expert down", 0) for n in softmax.checkpoint.tensors if "ffn_down_exps" in n}
    repaired = RepairedErrors({("expert down", kind): {0: 0.5} for kind in (*TYPES, "Q8_0")}, tensors, 1)
    (one,), (other,) = make_plans(plain, 1, repaired=NONE), make_plans(sampled, 1, repaired=repaired)
    theirs, ours = ([p for p in plan.considered if p.kind == "baseline"] for plan in (one, other))
    assert theirs and theirs == ours
    assert 0 < theirs[0].expert_count < softmax.topology.expert_count
    assert (other.predicted_kld or 0) < (one.predicted_kld or 0)


def test_real_errors_count_for_more_where_samples_do_not_tell_them(softmax: Bench, samples: SamplesSource) -> None:
    """Also with samples of which no expert got enough tokens."""
    name = next(n for n in softmax.checkpoint.tensors if "ffn_down_exps" in n)
    group, together = GroupProbe((name,), 0.1, 0.1, 0.0), TogetherProbe({name: 0.01}, {}, 0.01, 0.0)
    found = Sensitivity(
        samples.samples.model_id, "stats", ("t",), "", 512, 4, 8, 1020, 86016, "engine", (group,), (), (together,)
    )
    planning = dataclasses.replace(planning_of(softmax, samples), sensitivity_source=SensitivitySource.of(found))
    told = RepairedErrors({("expert down", "Q2_K"): {0: 0.5}}, {name: ("expert down", 0)}, 1)
    costs = [predictor_of(Candidates(planning), repaired).errors(0.01) for repaired in (None, NONE, told)]
    assert costs == pytest.approx([0.01 * REAL_ERRORS, 0.01 * REAL_ERRORS, 0.01])


def _size(bench: Bench) -> int:
    """What 6.5 bits a weight take."""
    return int(bench.topology.total_parameters * 6.5 / 8)
