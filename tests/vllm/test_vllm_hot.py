"""Which experts are hot, by a plan's statistics; needs no vLLM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from collab_vllm.experts.hot import hot_of_layer
from collab_vllm.selection.loader_options import LoaderOptions
from real_vllm import MODELS
from small_models.tiny_moe import some_stats
from trained_plans import pruning_plan

from collab_plugin.errors import CollabError
from collab_plugin.formats.file_hash import file_sha256
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


def hot(plan: Plan, folder: Path, layer: int) -> list[int] | None:
    return hot_of_layer(LoaderOptions(plan=folder / "plan.json", hot=HOT), plan, layer, EXPERTS)


def test_the_most_selected_of_the_kept_ones(plan: Plan, tmp_path: Path) -> None:
    for layer, most in ((0, True), (1, False)):
        kept = plan.pruning.kept[layer]
        originals = sorted(kept, reverse=most)[:HOT]
        assert hot(plan, tmp_path, layer) == sorted(map(kept.index, originals)) != [0, 1, 2]


def test_the_first_ones_where_nothing_is_known(plan: Plan, tmp_path: Path) -> None:
    assert hot(plan, tmp_path, 2) == [0, 1, 2], "a layer that the stats lack"
    (tmp_path / "stats.gguf").unlink()
    assert hot(plan, tmp_path, 0) == [0, 1, 2]
    assert hot_of_layer(LoaderOptions(stats=True), plan, 0, EXPERTS) is None


def test_other_stats_of_that_name_are_refused(plan: Plan, tmp_path: Path) -> None:
    written_stats(tmp_path / "stats.gguf", 1)
    with pytest.raises(CollabError, match="not the stats file that the plan was made with; put that beside the plan"):
        hot(plan, tmp_path, 0)


def test_truncated_stats_are_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "stats.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CollabError, match=r"stats\.gguf"):
        hot(plan, tmp_path, 0)
