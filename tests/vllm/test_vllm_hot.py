"""Which experts are hot, by a plan's statistics; needs no vLLM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from collab_vllm.experts.hot import TierStart, tiers_of_layer
from collab_vllm.selection.loader_options import LoaderOptions
from hand_placements import save_placement
from real_vllm import MODELS
from small_models.tiny_moe import some_stats
from trained_plans import pruning_plan

from collab_plugin.errors import CollabError
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.placement.placement import PlacedArtifact, PolicyUse
from collab_plugin.plans.plan import Calibration, Plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.stats.stats import LayerRouting
from collab_plugin.stats.stats_file import write_stats

MODEL = MODELS / "tiny-qwen3moe"
EXPERTS, HOT = 24, 3


def written_stats(path: Path, seed: int) -> str:
    """Layer 0 selected expert e of the original 1000 + e times, layer 1 the other way round, layer 2 is not in it."""
    up = np.arange(1000, 1032)
    routing = {layer: LayerRouting(int(count.sum()), count, count * 0.5) for layer, count in enumerate((up, up[::-1]))}
    stats = dataclasses.replace(some_stats(open_checkpoint(MODEL), seed), routing=routing)
    write_stats(path, stats)
    return file_sha256(path)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made = pruning_plan(MODEL, tmp_path / "plan.json", keep=EXPERTS, used=3)
    digest = written_stats(tmp_path / "stats.gguf", 0)
    return dataclasses.replace(made, calibration=Calibration(digest, 1, (), "", False, 0, 0.0, "", "stats.gguf"))


def start(options: LoaderOptions, plan: Plan, layer: int) -> TierStart:
    found = tiers_of_layer(options, plan, layer, EXPERTS, 3)
    assert found is not None
    return found


def hot(plan: Plan, folder: Path, layer: int) -> list[int]:
    return list(start(LoaderOptions(plan=folder / "plan.json", hot=HOT), plan, layer).hot)


def test_the_most_selected_of_the_kept_ones(plan: Plan, tmp_path: Path) -> None:
    for layer, most in ((0, True), (1, False)):
        kept = plan.pruning.kept[layer]
        originals = sorted(kept, reverse=most)[:HOT]
        assert hot(plan, tmp_path, layer) == sorted(map(kept.index, originals)) != [0, 1, 2]


def test_the_first_ones_where_nothing_is_known(plan: Plan, tmp_path: Path) -> None:
    assert hot(plan, tmp_path, 2) == [0, 1, 2], "a layer that the stats lack"
    (tmp_path / "stats.gguf").unlink()
    assert hot(plan, tmp_path, 0) == [0, 1, 2]
    assert tiers_of_layer(LoaderOptions(stats=True), plan, 0, EXPERTS, 3) is None


def test_other_stats_of_that_name_are_refused(plan: Plan, tmp_path: Path) -> None:
    written_stats(tmp_path / "stats.gguf", 1)
    with pytest.raises(CollabError, match="not the stats file that the plan was made with; put that beside the plan"):
        hot(plan, tmp_path, 0)


def test_truncated_stats_are_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "stats.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CollabError, match=r"stats\.gguf"):
        hot(plan, tmp_path, 0)


def written_placement(plan: Plan, folder: Path, dynamic: bool, **other: object) -> Path:
    policy = PolicyUse("lfu-decay", {"decay": 0.5}, dynamic)
    return save_placement(folder / "placement.json", plan, dict.fromkeys(range(4), EXPERTS), (4, 2), policy, **other)


def test_a_placement_says_where_experts_start_and_what_moves_them(plan: Plan, tmp_path: Path) -> None:
    path = written_placement(plan, tmp_path, dynamic=True)
    placed = start(LoaderOptions(plan=tmp_path / "plan.json", placement=path), plan, 0)
    assert placed.hot == (4, 2)
    assert placed.policy.values["decay"] == 0.5
    kept = np.array(plan.pruning.kept[0])
    assert placed.expected == pytest.approx(3 * (1000 + kept) / (1000 + kept).sum()), "the stats beside the plan"
    resident = placed.resident_set(range(EXPERTS))
    assert resident.experts == [2, 4] and resident.room == 2
    half = placed.resident_set(range(0, EXPERTS, 4))  # a rank's share, under its own numbers
    assert half.experts == [1] and half.room == 1


def test_the_order_of_a_placement_counts_where_there_are_no_stats(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "stats.gguf").unlink()
    path = written_placement(plan, tmp_path, dynamic=True)
    expected = start(LoaderOptions(plan=tmp_path / "plan.json", placement=path), plan, 0).expected
    assert list(np.argsort(-expected)[:4]) == [4, 2, 23, 22]
    assert expected.max() < 1e-5, "one real choice says more"


def test_a_static_placement_moves_nothing(plan: Plan, tmp_path: Path) -> None:
    path = written_placement(plan, tmp_path, dynamic=False)
    placed = start(LoaderOptions(plan=tmp_path / "plan.json", placement=path), plan, 0)
    resident = placed.resident_set(range(EXPERTS))
    chosen = np.isin(range(EXPERTS), (7, 8))
    resident.saw(chosen)
    assert resident.bring_in([7, 8], chosen) == resident.rearrange(8) == []


@pytest.mark.parametrize(
    ("experts", "other", "message"),
    [
        (EXPERTS - 1, {}, "places 24 experts in layer 0, the model has 23"),
        (EXPERTS, {"artifact": PlacedArtifact("tiny", 1, "sha256:0")}, "the artifact of another plan"),
        (EXPERTS, {"experts": None}, "places whole tensors alone"),
    ],
)
def test_placements_that_do_not_fit_are_refused(
    plan: Plan, tmp_path: Path, experts: int, other: dict[str, object], message: str
) -> None:
    path = written_placement(plan, tmp_path, dynamic=True, **other)
    with pytest.raises(CollabError, match=message):
        tiers_of_layer(LoaderOptions(plan=tmp_path / "plan.json", placement=path), plan, 0, experts, 3)
