"""A tensor costs what its own error and that of its rounded inputs move."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType
from small_models.model_bench import Bench

from collab_plugin.planning.costs import Costs
from collab_plugin.planning.repaired_errors import NONE, RepairedErrors
from collab_plugin.stats.stats import InputRounding

DOWN, OUTPUT = "blk.1.ffn_down_exps.weight", "output.weight"


def costs_of(bench: Bench, repaired: RepairedErrors = NONE) -> Costs:
    tensors = bench.checkpoint.tensors
    return Costs({DOWN: 2.0, OUTPUT: 1.0}, tensors, {DOWN: InputRounding(5e-4, 1e-4)}, repaired)


def test_types_of_large_blocks_round_inputs_more(bench: Bench) -> None:
    costs = costs_of(bench)
    assert costs.of(DOWN, "Q4_K", 0.01) == pytest.approx(2 * (0.01 + 5e-4))
    assert costs.of(DOWN, "IQ2_XXS", 0.01) == pytest.approx(2 * (0.01 + 5e-4))
    assert costs.of(DOWN, "Q8_0", 0.01) == pytest.approx(2 * (0.01 + 1e-4))


def test_what_is_not_quantized_or_was_not_seen_costs_its_error_alone(bench: Bench) -> None:
    costs = costs_of(bench)
    stored = bench.checkpoint.tensors[DOWN].type.name
    assert GGMLQuantizationType[stored] in (GGMLQuantizationType.BF16, GGMLQuantizationType.F16)
    assert costs.of(DOWN, stored, 0.0) == 0
    assert costs.of(DOWN, "F16", 1e-8) == pytest.approx(2e-8)
    assert costs.of(OUTPUT, "Q4_K", 0.01) == pytest.approx(0.01)


def test_repair_takes_from_the_error_and_not_from_the_inputs(bench: Bench) -> None:
    repaired = RepairedErrors({("expert down", "Q4_K"): {1: 0.5}}, {DOWN: ("expert down", 0)}, 4)
    costs = costs_of(bench, repaired)
    assert costs.of(DOWN, "Q4_K", 0.01) == pytest.approx(2 * (0.005 + 5e-4))
    assert costs.of(DOWN, "Q5_K", 0.01) == pytest.approx(2 * (0.01 + 5e-4)), "not measured for this type"
    assert costs.without_repair().of(DOWN, "Q4_K", 0.01) == pytest.approx(2 * (0.01 + 5e-4))
