"""Tables of tokens and experts after experts were dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from small_models.gguf_copies import write_copy
from small_models.hand_made_plans import pruned
from small_models.random_moe import EXPERTS, TOP_K, VOCABULARY, write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.hash_routes import remapped

RNG = np.random.default_rng(1)
TABLE = np.array([RNG.permutation(16)[:4] for _ in range(500)], np.int32)
KEPT = (3, 0, 15, 7, 8, 9, 2, 11)


def test_kept_experts_keep_their_tokens() -> None:
    found = remapped(TABLE, KEPT, 16, 4)
    assert all(len(set(row)) == 4 for row in found.tolist())
    for before, after in zip(TABLE.tolist(), found.tolist(), strict=True):
        stay = [expert for expert in before if expert in KEPT]
        assert [KEPT[number] for number in after[: len(stay)]] == stay


def test_substitutes_share_the_tokens() -> None:
    before = np.bincount(np.searchsorted(sorted(KEPT), TABLE[np.isin(TABLE, KEPT)]), minlength=8)
    load = np.bincount(remapped(TABLE, KEPT, 16, 4).ravel(), minlength=8)
    assert load.sum() == TABLE.size
    assert load.min() > 0.6 * TABLE.size / 8
    assert load.max() < 1.5 * TABLE.size / 8
    assert before.sum() < TABLE.size


def test_fewer_experts_a_token_keep_what_is_kept() -> None:
    found = remapped(TABLE, KEPT, 16, 2)
    assert found.shape == (500, 2)
    both = np.isin(TABLE, KEPT).sum(axis=1) >= 2
    assert np.isin(np.array(KEPT)[found[both]], TABLE[both]).all()


def test_all_experts_kept_change_nothing() -> None:
    np.testing.assert_array_equal(remapped(TABLE, range(16), 16, 4), TABLE)


@pytest.mark.parametrize(("used", "kept"), [(5, KEPT), (4, KEPT[:3]), (0, KEPT)])
def test_more_experts_than_there_are(used: int, kept: tuple[int, ...]) -> None:
    with pytest.raises(CollabError, match=f"a token cannot use {used}"):
        remapped(TABLE, kept, 16, used)


def test_ids_that_no_expert_has() -> None:
    with pytest.raises(CollabError, match="names experts that are none of 15"):
        remapped(TABLE, KEPT[3:], 15, 2)


def test_a_pruned_gguf_has_the_table_of_its_experts(tmp_path: Path) -> None:
    """Beside it: biases, and scales by expert, are those of the kept experts."""
    name = "blk.0.ffn_gate_tid2eid.weight"
    table = np.array([RNG.permutation(EXPERTS)[:TOP_K] for _ in range(VOCABULARY)], np.int32)
    more = {
        name: (table, T.I32),
        "blk.0.ffn_up_exps.bias": (RNG.standard_normal((EXPERTS, 256)).astype(np.float32), T.F32),
        "blk.1.ffn_down_exps.scale": (RNG.standard_normal(EXPERTS).astype(np.float32), T.F32),
    }
    source = write_copy(write_qwen3moe(tmp_path / "plain.gguf"), tmp_path / "in.gguf", more=more)
    checkpoint, kept = open_gguf(source), (3, 0, 15, 7, 8, 9, 2, 11)
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    out = tmp_path / "out.gguf"
    compress(checkpoint, plan, None, out, kernels=None, threads=1, report=lambda done, total=None: None)
    found = open_gguf(out)
    np.testing.assert_array_equal(found.read(name), remapped(table, kept, EXPERTS, plan.activation.used))
    for other in set(more) - {name}:
        np.testing.assert_array_equal(found.read(other), more[other][0][list(kept)])
