"""Experts of a file in the order of heat or of company: the same experts elsewhere, and the same tokens out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models.tiny_moe import write_deepseek2

import collab_plugin as cp
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.kept_experts import kept_experts
from collab_plugin.compression.expert_order import by_company, by_heat, company_of
from collab_plugin.plans.copy_plan import copy_plan


def trace_of(model: Path) -> cp.RoutingTrace:
    topology = cp.topology_of(open_gguf(model))
    random = np.random.default_rng(0)
    heat = random.permutation(topology.expert_count)
    rows = np.stack([
        np.stack([random.choice(heat, topology.experts_used, replace=False, p=_falling(len(heat)))
                  for _ in topology.moe_layers]) for _ in range(300)
    ])  # fmt: skip
    return cp.RoutingTrace(rows.astype(np.int16), topology.moe_layers, topology.expert_count)


def _falling(n: int) -> np.ndarray:
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


@pytest.mark.parametrize("order", ["heat", "co-activation"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_file_is_the_same_but_for_the_order(groups: int, order: str, tmp_path: Path) -> None:
    path = write_deepseek2(tmp_path / "model.gguf", experts=8, groups=groups)
    source, trace, out = open_gguf(path), trace_of(path), tmp_path / "out.gguf"
    written = cp.compress(path, copy_plan(source), out, order=order, trace=trace, threads=1)
    made, plan = open_gguf(out), cp.read_plan(Path(f"{out}.plan.json"))
    assert plan.pruning.order == order
    assert plan.bytes == written.bytes == out.stat().st_size
    kept = kept_experts(made.metadata)
    counts = trace.counts
    for at, layer in enumerate(trace.layers):
        ids = np.array(kept[layer])
        per_group = len(ids) // groups
        assert (ids.reshape(groups, -1) // per_group == np.arange(groups)[:, None]).all(), "in their groups"
        if order == "heat":
            assert (np.diff(counts[at][ids].reshape(groups, -1)) <= 0).all()
        for new, old in enumerate(ids):
            for name in (f"blk.{layer}.ffn_up_exps.weight", f"blk.{layer}.ffn_gate_inp.weight"):
                rows = {"expert": int(new)} if "exps" in name else {"rows": slice(new, new + 1)}
                other = {"expert": int(old)} if "exps" in name else {"rows": slice(old, old + 1)}
                np.testing.assert_array_equal(made.read_raw(name, **rows), source.read_raw(name, **other))
    # The trace of the original counts for the file too, in its numbers.
    renumbered = trace.renumbered(kept)
    assert (np.sort(renumbered.counts) == np.sort(counts)).all()


@pytest.mark.native
def test_the_same_text_comes_out(qwen3moe: Path, tmp_path: Path) -> None:
    cp.compress(qwen3moe, copy_plan(open_gguf(qwen3moe)), tmp_path / "o.gguf", order="heat", trace=trace_of(qwen3moe))
    before, after = (cp.run(model, "hello", max_tokens=12, threads=1).text for model in (qwen3moe, tmp_path / "o.gguf"))
    assert before == after


@given(st.permutations(range(8)))
def test_company_puts_pairs_side_by_side(numbers: list[int]) -> None:
    pairs = np.array(numbers).reshape(4, 2)
    chosen = np.concatenate([np.tile(pair, (10, 1)) for pair in pairs])
    together = company_of(cp.RoutingTrace(chosen[:, None].astype(np.int16), (0,), 8))[0]
    # Neighbouring pairs are tied too, so that there is one line to find.
    for a, b in itertools.pairwise(pairs):
        together[a[1], b[0]] += 4
        together[b[0], a[1]] += 4
    line = by_company(np.arange(8), together).tolist()
    assert line in (list(numbers), list(numbers)[::-1]) or all(
        abs(line.index(a) - line.index(b)) == 1 for a, b in pairs.tolist()
    )


def test_heat_breaks_ties_by_number() -> None:
    assert by_heat(np.array([4, 1, 3, 0]), np.array([2.0, 5.0, 9.0, 2.0, 5.0])).tolist() == [1, 4, 0, 3]


def test_what_is_refused(qwen3moe: Path, tmp_path: Path) -> None:
    plan, out = copy_plan(open_gguf(qwen3moe)), tmp_path / "out.gguf"
    for options, words in (
        ({"order": "co-activation"}, "needs a `trace`"),
        ({"order": "heat"}, "needs a `trace` or `stats`"),
        ({"order": "size", "trace": trace_of(qwen3moe)}, "neither heat nor co-activation"),
        ({"trace": trace_of(qwen3moe)}, "give that too"),
    ):
        with pytest.raises(cp.CollabError, match=words):
            cp.compress(qwen3moe, plan, out, **options)  # type: ignore[call-overload]
