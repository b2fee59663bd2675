"""Disturbed sequences beside undisturbed ones: masks equal real pruning, noise acts like quantization."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.calibrate.disturb import sequences_for
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from small_models.hand_made_plans import pruned
from small_models.tiny_moe import write_deepseek2, write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.disturbance import Disturbance, Effect, ErrorShape
from collab_plugin.engines.engine import Windows
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.progress import untold

ENGINE = LlamaCppEngine()
CTX = 64
Write = Callable[..., Path]
SHAPE = ErrorShape(np.ones((1, 1), np.float32), np.ones(1, np.float32))


def moe_layers(model: Path) -> set[int]:
    return {i.layer for i in open_gguf(model).tensors.values() if i.by_expert and i.layer is not None}


def disturb(model: Path, text: Path, *disturbances: Disturbance) -> tuple[Effect, ...]:
    shapes = {name: SHAPE for d in disturbances for name in d.errors}
    windows = Windows((text,), CTX, 2)
    return ENGINE.disturb(model, disturbances, shapes, windows, threads=1, progress=untold)


@pytest.mark.parametrize(
    ("write", "groups"),
    [(write_qwen3moe, 1), (write_deepseek2, 1), (write_deepseek2, 2)],
    ids=["softmax", "sigmoid", "groups"],
)
def test_masked_experts_are_as_good_as_pruned(write: Write, groups: int, prose: Path, tmp_path: Path) -> None:
    options = {"groups": groups} if groups > 1 else {}
    model = write(tmp_path / "model.gguf", experts=8, **options)
    kept = (0, 2, 3, 5, 6, 7) if groups == 1 else (0, 2, 3, 4, 6, 7)
    checkpoint = open_gguf(model)
    masked, nothing = disturb(model, prose, Disturbance(kept=dict.fromkeys(moe_layers(model), kept)), Disturbance())
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    out = tmp_path / "pruned.gguf"
    compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold)
    real = ENGINE.evaluate(out, model, Windows((prose,), CTX, 2), threads=1, progress=untold)
    assert masked.tokens == real.tokens
    assert real.mean_kld > 1e-3, "pruning this model must be seen"
    assert masked.mean_kld == pytest.approx(real.mean_kld, rel=2e-3)
    assert abs(nothing.mean_kld) < 1e-6


@pytest.mark.parametrize("write", [write_qwen3moe, write_deepseek2], ids=["softmax", "sigmoid"])
def test_fewer_experts_a_token_are_as_good_as_in_a_file(write: Write, prose: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "model.gguf", experts=8)
    checkpoint = open_gguf(model)
    kept = (0, 1, 2, 4, 5, 7)
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    activation = dataclasses.replace(plan.activation, used=1)
    metadata = {**plan.metadata, f"{checkpoint.architecture}.expert_used_count": 1}
    plan = dataclasses.replace(plan, activation=activation, metadata=metadata)
    out = tmp_path / "pruned.gguf"
    compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold)
    real = ENGINE.evaluate(out, model, Windows((prose,), CTX, 2), threads=1, progress=untold)
    masked = disturb(model, prose, Disturbance(kept=dict.fromkeys(moe_layers(model), kept), experts_used=1))[0]
    assert real.mean_kld > 1e-3
    assert masked.mean_kld == pytest.approx(real.mean_kld, rel=2e-3)


def test_each_sequence_gets_its_own_noise_and_twice_the_error_twice_the_harm(qwen3moe: Path, prose: Path) -> None:
    down, out = "blk.1.ffn_down_exps.weight", "output.weight"
    calm, loud, other, none = disturb(
        qwen3moe, prose,
        Disturbance({down: 1e-5}), Disturbance({down: 2e-5}), Disturbance({out: 1e-3}), Disturbance(),
    )  # fmt: skip
    assert abs(none.mean_kld) < 1e-7
    assert calm.mean_kld > 1e-5
    assert loud.mean_kld / calm.mean_kld == pytest.approx(2, rel=0.15), "KL divergence is proportional to the error"
    assert other.mean_kld > 0
    again = disturb(qwen3moe, prose, Disturbance({down: 1e-5}), Disturbance(), Disturbance(), Disturbance())[0]
    assert again == calm, "the same on every run, whatever runs beside it"


def test_a_weight_without_products_is_told(qwen3moe: Path, prose: Path) -> None:
    with pytest.raises(CollabError, match=r"blk.0.attn_norm.weight was not multiplied with"):
        disturb(qwen3moe, prose, Disturbance({"blk.0.attn_norm.weight": 0.1}))


def test_batches_hold_what_memory_allows() -> None:
    assert sequences_for(512, 4096, 3) == 4
    assert sequences_for(512, 4096, 100) == 16
    assert sequences_for(512, 129_280, 100) == 4, "DeepSeek-V3's logits: 129,280 x 4 bytes a token"
    assert sequences_for(8192, 129_280, 100) == 2, "one disturbed, one not"
