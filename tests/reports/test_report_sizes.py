"""What a plan alone tells about weights, bits and experts."""

from __future__ import annotations

import dataclasses

import pytest
from small_models.big_plan import EXPERTS, KEPT, LAYERS, big_plan, some_kept
from small_models.made import Made

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.placement.artifact_shape import weights_of
from collab_plugin.plans.artifact import new_shape
from collab_plugin.plans.plan import Plan
from collab_plugin.reports.sizes import bits_map, moe_layers, original_experts, part_of


@pytest.fixture(scope="module")
def big() -> Plan:
    return big_plan(some_kept())


def test_experts_before_pruning(made: Made, big: Plan) -> None:
    topology = topology_of(open_gguf(made.model))
    assert made.plan.pruning.expert_count == 12
    assert original_experts(made.plan) == topology.expert_count == 16
    assert moe_layers(made.plan) == topology.moe_layers
    assert (original_experts(big), KEPT) == (EXPERTS, 192)


def test_experts_are_unknown_when_sizes_do_not_tell(big: Plan) -> None:
    source = dataclasses.replace(big.source, parameters=big.source.parameters + 1)
    assert original_experts(dataclasses.replace(big, source=source)) is None


def test_weights_are_those_of_the_model(made: Made) -> None:
    for name, info in open_gguf(made.model).tensors.items():
        shape = new_shape(info, made.plan)
        count = 1
        for length in shape:
            count *= length
        assert weights_of(made.plan.tensors[name]) == count, name


def test_roles_and_cells_add_up_to_all_tensors(made: Made) -> None:
    bits = bits_map(made.plan)
    total = sum(t.nbytes for t in made.plan.tensors.values())
    assert sum(b.bytes for b in bits.by_role) == sum(b.bytes for b in bits.cells) == total
    assert all(sum(b.types.values()) == b.bytes for b in bits.cells)
    assert [b.bytes for b in bits.by_role] == sorted((b.bytes for b in bits.by_role), reverse=True)


def test_bits_a_weight_of_one_type_are_the_types(big: Plan) -> None:
    cells = bits_map(big).by_part()
    assert cells["expert gate"][3].types.keys() == {"IQ1_M"}
    assert cells["expert gate"][3].bits_per_weight == 1.75
    assert cells["embedding"][None].bits_per_weight == 2.625
    assert set(cells["attention"]) == set(range(LAYERS))


def test_part_names() -> None:
    names = ("blk.3.ffn_gate_up_exps.weight", "blk.3.ffn_down_exps.weight", "blk.0.ffn_down.weight", "output.weight")
    assert [part_of(name) for name in names] == ["expert gate+up", "expert down", "ffn", "output"]
