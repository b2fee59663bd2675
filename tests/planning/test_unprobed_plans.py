"""Plans without probes beside llama-quantize's presets, on trained models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_models.model_bench import Bench

from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.learned_weights import table_weights
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.planning.presets import PRESETS, preset_types
from collab_plugin.planning.search import error_table, make_plans
from collab_plugin.plugins.open_checkpoint import open_checkpoint

TRAINED = Path(__file__).parents[1] / "models"
FAST = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
DRAWS = 50
FACTOR = 2.0
"""One standard deviation of what a part's weight at a depth may really be."""


@pytest.mark.parametrize("name", ["tiny-qwen3moe", "tiny-deepseek-v3"])
def test_presets_lose_more_also_when_the_weights_are_others(name: str, softmax: Bench) -> None:
    """A plan of a preset's bytes beats it by its own weights, and by weights that differ by a factor of two or more."""
    checkpoint = open_checkpoint(TRAINED / name)
    bench = dataclasses.replace(softmax, checkpoint=checkpoint, topology=topology_of(checkpoint))
    table = error_table(bench.planning(1, source=None, types=FAST))
    candidates = Candidates(bench.planning(1, source=None, types=FAST))
    whole = candidates.candidate(bench.topology.expert_count, bench.topology.experts_used)
    own = table_weights(checkpoint, bench.topology)
    rng = np.random.default_rng(0)
    for preset in (preset for preset, kind in PRESETS.items() if kind in FAST):
        theirs = preset_types(checkpoint, preset, imatrix=False)
        budget = candidates.finish(whole, theirs, {}).bytes
        (plan,) = make_plans(bench.planning(budget, source=None, types=FAST), 1, errors=table)
        ours = {tensor: plan.tensors[tensor].type for tensor in theirs}
        errors = table.measure({tensor: (theirs[tensor], ours[tensor]) for tensor in theirs})
        for draw in range(DRAWS):
            scale: dict[tuple[str, int | None], float] = {}
            lost = {"ours": 0.0, "theirs": 0.0}
            for tensor, weight in own.items():
                info = checkpoint.tensors[tensor]
                factor = scale.setdefault((part_of(info), info.layer), float(FACTOR ** rng.normal()) if draw else 1.0)
                lost["ours"] += factor * weight * errors[tensor][ours[tensor]]
                lost["theirs"] += factor * weight * errors[tensor][theirs[tensor]]
            assert lost["ours"] <= lost["theirs"], (preset, draw)
