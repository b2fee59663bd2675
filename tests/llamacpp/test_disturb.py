"""Disturbed sequences beside undisturbed ones: masks equal real pruning, noise acts like quantization."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.calibrate.disturb import MOST_SEQUENCES, sequences_for
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.hand_made_plans import pruned
from small_models.tiny_moe import write_deepseek2, write_qwen3moe

from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.disturbance import Disturbance, Effect, Effects, ErrorShape
from collab_plugin.engines.engine import Windows
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.measure.error_shapes import error_shapes
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.progress import untold

ENGINE = LlamaCppEngine()
CTX = 64
Write = Callable[..., Path]
Q8_ERROR = 2.8e-5
"""Relative squared error of normal values at Q8_0."""
SHAPE = ErrorShape(np.ones((1, 1), np.float32), np.ones(1, np.float32), np.ones((1, 1), np.float32))


def moe_layers(model: Path) -> set[int]:
    return {i.layer for i in open_gguf(model).tensors.values() if i.by_expert and i.layer is not None}


def run(model: Path, text: Path, *disturbances: Disturbance, chunks: int, most: int | None) -> Effects:
    shapes = {name: SHAPE for d in disturbances for name in d.tensors}
    windows = Windows((text,), CTX, chunks)
    return ENGINE.disturb(model, disturbances, shapes, windows, most=most, threads=1, progress=untold)


def disturb(model: Path, text: Path, *disturbances: Disturbance) -> tuple[Effect, ...]:
    return run(model, text, *disturbances, chunks=2, most=None).each


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
    pruning = Disturbance(kept=dict.fromkeys(moe_layers(model), kept))
    found = run(model, prose, pruning, Disturbance(), chunks=2, most=None)
    masked, nothing = found.each
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    out = tmp_path / "pruned.gguf"
    compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold)
    real = ENGINE.evaluate(out, model, Windows((prose,), CTX, 2), threads=1, progress=untold)
    assert (found.scored, found.windows, found.tokens_run) == (real.tokens, 2, 3 * 2 * CTX)
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


def test_tasks_that_fill_several_batches_share_one_undisturbed_run(qwen3moe: Path, prose: Path) -> None:
    """The same figures as in a batch of their own, and a token run once for each."""
    names = [f"blk.{layer}.{part}.weight" for layer in (0, 1) for part in ("attn_q", "attn_k", "attn_v", "attn_output")]
    tasks = [Disturbance({name: error}) for error in (1e-3, 2e-3, 3e-3) for name in names]
    found = run(qwen3moe, prose, *tasks, chunks=6, most=2)
    assert len(tasks) > MOST_SEQUENCES
    assert (found.windows, found.tokens_run) == (2, (len(tasks) + 1) * 2 * CTX)
    last = run(qwen3moe, prose, tasks[-1], chunks=6, most=2).each[0]
    assert last.mean_kld == pytest.approx(found.each[-1].mean_kld, rel=1e-3)
    assert run(qwen3moe, prose, tasks[-1], chunks=2, most=None).each[0] != last, "other windows: not the first two"


def test_parts_are_together_what_one_run_measures(qwen3moe: Path, prose: Path) -> None:
    """To the last bit: five windows in two parts, and a part that no window is left for."""
    tasks = [Disturbance({"output.weight": 1e-3}), Disturbance(kept=dict.fromkeys(moe_layers(qwen3moe), (0, 1)))]
    whole = run(qwen3moe, prose, *tasks, chunks=5, most=None)
    shapes, windows = {"output.weight": SHAPE}, Windows((prose,), CTX, 5)

    def joined(count: int) -> Effects:
        return Effects.joined(
            [
                ENGINE.disturb(qwen3moe, tasks, shapes, windows, part=(i, count), threads=1, progress=untold)
                for i in range(count)
            ]
        )

    assert joined(2) == whole
    assert joined(6) == whole
    assert len(whole.each[0].windows) == 5


def test_rounded_inputs_are_as_bad_as_those_of_a_real_file(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    """A Q8_0 file errs by its tensors and, as much, by its inputs; the disturbance has both."""
    checkpoint = open_gguf(qwen3moe)
    names = [n for n, i in checkpoint.tensors.items() if quantizable(i) and i.role != Role.EMBEDDING]
    plan = copy_plan(checkpoint)
    types = {n: TensorPlan("Q8_0", tensor_bytes("Q8_0", checkpoint.tensors[n].shape), 0.0) for n in names}
    plan = dataclasses.replace(plan, tensors={**plan.tensors, **types})
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    out = tmp_path / "q8.gguf"
    compress(checkpoint, plan, None, out, kernels=GgmlKernels(), threads=1, report=untold)
    real = ENGINE.evaluate(out, qwen3moe, Windows((prose,), CTX, 2), threads=1, progress=untold).mean_kld
    shapes = error_shapes(checkpoint, names, None, 1, untold)
    errors = dict.fromkeys(names, Q8_ERROR)
    found = ENGINE.disturb(
        qwen3moe,
        [Disturbance(errors), Disturbance(rounded=dict.fromkeys(names, 32)),
         Disturbance(errors, dict.fromkeys(names, 32))],
        shapes, Windows((prose,), CTX, 2), threads=1, progress=untold,
    )  # fmt: skip
    tensors, inputs, both = (each.mean_kld for each in found.each)
    assert real / 1.7 < both < 1.7 * real
    assert tensors < 0.8 * both
    assert inputs > 0.2 * both


def test_a_weight_without_products_is_told(qwen3moe: Path, prose: Path) -> None:
    with pytest.raises(CollabError, match=r"blk.0.attn_norm.weight was not multiplied with"):
        disturb(qwen3moe, prose, Disturbance({"blk.0.attn_norm.weight": 0.1}))


def test_batches_hold_what_memory_allows() -> None:
    assert sequences_for(512, 4096, 3) == 3
    assert sequences_for(512, 4096, 100) == 16
    assert sequences_for(512, 129_280, 100) == 4, "DeepSeek-V3's logits: 129,280 x 4 bytes a token"
    assert sequences_for(8192, 129_280, 100) == 2
