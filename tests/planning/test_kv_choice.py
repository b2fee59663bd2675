"""The type of the KV cache as part of the choice: what it leaves the file against what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_models.random_moe import imagined_stats, write_qwen3moe

import collab_plugin as cp
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.placement.artifact_shape import shape_of_checkpoint
from collab_plugin.placement.memory import memory_of
from collab_plugin.planning.kv_choice import LOSS, with_best_cache
from collab_plugin.plans.copy_plan import copy_plan


def test_the_least_of_plan_and_cache_together(qwen3moe: Path) -> None:
    plain = copy_plan(open_gguf(qwen3moe))
    plans = {
        "f16": replace(plain, predicted_kld=0.0100, budget=1),
        "q8_0": replace(plain, predicted_kld=0.0098, budget=2),
        "q4_0": replace(plain, predicted_kld=0.0070, budget=3),
    }
    found = with_best_cache(("f16", "q8_0", "q4_0"), lambda kind: plans[kind])
    assert found.budget == 2
    assert found.notes[-1].startswith(
        "run it with a KV cache of q8_0: plan and cache are predicted to cost 0.0099 nats together, with f16 0.01, "
        f"q4_0 {0.007 + LOSS['q4_0']:.4g}; "
    )


def test_a_cache_that_leaves_too_little_is_passed_over(qwen3moe: Path) -> None:
    plain = replace(copy_plan(open_gguf(qwen3moe)), predicted_kld=0.1)

    def made(kind: str) -> cp.Plan:
        if kind != "q4_0":
            raise CollabError(f"{kind} does not fit")
        return plain

    assert "KV cache of q4_0" in with_best_cache(("f16", "q8_0", "q4_0"), made).notes[-1]
    with pytest.raises(CollabError, match="q8_0 does not fit"):
        with_best_cache(("f16", "q8_0"), made)


@pytest.mark.native
def test_it_is_the_plan_of_that_cache(tmp_path: Path) -> None:
    model, stats = write_qwen3moe(tmp_path / "model.gguf"), tmp_path / "stats.gguf"
    cp.write_stats(stats, imagined_stats(open_gguf(model)))
    setup = cp.RunSetup(context=4096, reserve=0)
    shape = shape_of_checkpoint(open_gguf(model))
    rest = sum(part.bytes or 0 for part in memory_of(shape, setup, {}).runtime)
    common = {"stats": stats, "memory": rest + shape.bytes // 5, "keep": 8, "types": ["Q4_K", "Q5_K", "Q8_0"]}
    found = cp.plan(model, **common, setup=setup, kv_types=("f16", "q8_0", "q4_0"), threads=1)  # type: ignore[arg-type]
    alone = {
        kind: cp.plan(model, **common, setup=replace(setup, kv_type=kind), threads=1)  # type: ignore[arg-type]
        for kind in ("f16", "q8_0", "q4_0")
    }
    best = min(alone, key=lambda kind: (alone[kind].predicted_kld or 0) + LOSS[kind])
    assert (found.tensors, found.budget) == (alone[best].tensors, alone[best].budget)
    assert f"KV cache of {best}: " in found.notes[-1]
    assert f"tokens of {best} KV cache" in found.notes[-2]


def test_mistakes(qwen3moe: Path, tmp_path: Path) -> None:
    command = ["plan", str(qwen3moe), "-o", str(tmp_path / "plan.json"), "--kv-types"]
    for options, words in (
        (["f16,q9", "--memory", "1GB"], "'q9' is none of f32, f16, q8_0, q4_0"),
        (["f16,q8_0", "--budget", "1GB"], "--kv-types are weighed with --memory or --machine"),
    ):
        done = CliRunner().invoke(main, [*command, *options])
        assert done.exit_code == 2
        assert words in done.stderr
