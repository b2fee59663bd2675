"""An existing Q4_K_M file of each trained model, pruned without requantization, computes what the masked one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import LlamaFileType
from small_models.llama_cpp_calls import llama_quantize, logits

from collab_plugin.checkpoint.gguf import open_gguf, open_shard
from collab_plugin.cli import main
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.stats.stats_file import read_stats

MODELS = Path(__file__).parents[1] / "models"
# One word again and again: few experts are chosen, so that some can be dropped without a trace.
TEXT = " the" * 16


def call(*arguments: str | Path) -> dict[str, object]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    parsed: dict[str, object] = json.loads(result.stdout)
    return parsed


def q4_k_m(model: str, folder: Path) -> Path:
    source = as_gguf(open_checkpoint(MODELS / model), 2)
    out = folder / "q4_k_m.gguf"
    llama_quantize(source, out, "", LlamaFileType.MOSTLY_Q4_K_M, open_gguf(source), None)
    return out


def prune(file: Path, folder: Path, keep: str, used: str) -> tuple[Path, dict[int, tuple[int, ...]]]:
    """Calibrate on one window of the text, keep the most used, copy bytes: the pruned file and kept ids."""
    text, stats, plan, out = (folder / name for name in ("t.txt", "stats.gguf", "plan.json", "pruned.gguf"))
    text.write_text(TEXT + TEXT)
    call("calibrate", file, "--text", text, "--ctx", "16", "--chunks", "1", "-o", stats)
    call(
        "plan", file, "--stats", stats, "--keep", keep, "--keep-types", "--criterion", "freq", "--allow-few-tokens",
        "--experts-used", used, "-o", plan,
    )  # fmt: skip
    call("compress", file, "--plan", plan, "-o", out)
    before, after = open_gguf(file), open_gguf(out)
    assert {i.type for i in before.tensors.values()} == {i.type for i in after.tensors.values()}
    return out, dict(read_plan(plan).pruning.kept)


@pytest.mark.native
def test_deepseek_equals_a_bias_that_masks(tmp_path: Path) -> None:
    full = q4_k_m("tiny-deepseek-v3", tmp_path)
    ours, kept = prune(full, tmp_path, "75%", "4")
    masked = tmp_path / "masked.gguf"
    shutil.copy(full, masked)
    header, _ = open_shard(full)
    with masked.open("r+b") as file:
        for layer, ids in kept.items():
            place = header.tensors[f"blk.{layer}.exp_probs_b.bias"]
            bias = open_gguf(full).read(place.name).copy()
            bias[np.setdiff1d(np.arange(len(bias)), ids)] = -1e9
            file.seek(place.offset)
            file.write(bias.tobytes())
    assert np.abs(logits(ours, TEXT) - logits(masked, TEXT)).max() < 1e-3


@pytest.mark.native
def test_qwen_equals_experts_that_never_win(tmp_path: Path) -> None:
    """Its router has no bias to mask with: dropped are experts that the text does not choose anyway."""
    full = q4_k_m("tiny-qwen3moe", tmp_path)
    ours, kept = prune(full, tmp_path, "28", "4")
    routing = read_stats(tmp_path / "stats.gguf").routing
    for layer, ids in kept.items():
        dropped = np.setdiff1d(np.arange(32), ids)
        if routing[layer].count[dropped].any():
            pytest.fail(f"layer {layer} uses more than 28 experts for 16 tokens: choose another text")
    rows = min(16, len(logits(full, TEXT)))
    assert np.abs(logits(ours, TEXT)[:rows] - logits(full, TEXT)[:rows]).max() < 1e-3
