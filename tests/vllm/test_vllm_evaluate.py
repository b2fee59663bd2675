"""vLLM's logits and text are those of the same weights in llama.cpp, and so are the figures made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_vllm.vllm_engine import VllmEngine
from real_vllm import MODELS, ROOT
from trained_plans import pruning_plan

from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.engines.engine import Decoding, Windows
from collab_plugin.engines.packed_logits import HEAD
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("vllm")]

TEXT = ROOT / "tests" / "texts" / "english.validation.txt"
WINDOWS = Windows((TEXT,), ctx=128, chunks=4)


def _gguf(model: Path, plan: Plan, out: Path) -> Path:
    compress(open_checkpoint(model), plan, None, out, kernels=None, threads=1, report=untold)
    return out


def _reference(model: str, folder: Path) -> Path:
    """llama.cpp's logits of a trained model."""
    gguf = _gguf(MODELS / model, copy_plan(open_checkpoint(MODELS / model)), folder / "original.gguf")
    LlamaCppEngine().reference(gguf, WINDOWS, out=folder / "original.npy", threads=1, progress=untold)
    return folder / "original.npy"


def test_both_engines_give_the_same_logits(tmp_path: Path) -> None:
    """One writes the reference, the other is compared with it: windows, positions and vocabulary are the same.
    (tiny-qwen3moe: in the next test, and test_vllm_serve.py.)"""
    model = "tiny-deepseek-v3"
    told: list[tuple[float, float | None]] = []
    found = VllmEngine().evaluate(
        MODELS / model, _reference(model, tmp_path), WINDOWS, threads=1, progress=lambda *done: told.append(done)
    )
    assert found.tokens == 4 * 63
    # llama.cpp rounds activations to the weights' BF16 and its cache to F16.
    assert found.mean_kld < 2e-3
    assert found.ppl == pytest.approx(found.ppl_original, rel=5e-3)
    assert found.same_top1 > 0.98
    assert told[-1] == (4 * 128, 4 * 128)


def test_a_pruned_folder_costs_what_llama_cpp_measures(tmp_path: Path) -> None:
    model = MODELS / "tiny-qwen3moe"
    plan = pruning_plan(model, tmp_path / "plan.json", keep=24, used=3)
    compress_folder(open_checkpoint(model), plan, tmp_path / "pruned", precision="original", threads=1, report=untold)
    pruned = _gguf(model, plan, tmp_path / "pruned.gguf")
    theirs = LlamaCppEngine().evaluate(
        pruned, _reference("tiny-qwen3moe", tmp_path), WINDOWS, threads=1, progress=untold
    )
    asked = [
        "evaluate", tmp_path / "pruned", "--against", model, "--text", TEXT, "--ctx", 128, "--chunks", 4, "--engine",
        "vllm", "--threads", 1, "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*map(str, asked)])
    assert done.exit_code == 0, done.stderr
    ours = json.loads(done.stdout)
    assert theirs.mean_kld > 0.05, "the models must differ, or the test proves nothing"
    assert ours["mean_kld"] == pytest.approx(theirs.mean_kld, rel=2e-3)
    assert ours["kld_p90"] == pytest.approx(theirs.kld_p90, rel=0.05)
    assert ours["ppl"] == pytest.approx(theirs.ppl, rel=0.01)
    assert ours["same_top1"] == pytest.approx(theirs.same_top1, abs=0.01)
    assert ours["tokens"] == theirs.tokens


def test_the_same_text_is_generated(tmp_path: Path) -> None:
    model, prompt, decoding = MODELS / "tiny-qwen3moe", "In the beginning God created", Decoding(12, ctx=64)
    gguf = _gguf(model, copy_plan(open_checkpoint(model)), tmp_path / "model.gguf")
    theirs = LlamaCppEngine().generate(gguf, prompt, decoding, threads=1, write=lambda text: None)
    pieces: list[str] = []
    ours = VllmEngine().generate(model, prompt, decoding, threads=1, write=pieces.append)
    assert ours.text == theirs.text == "".join(pieces)
    assert len(pieces) > 1, "as it comes"
    assert (ours.prompt_tokens, ours.tokens) == (theirs.prompt_tokens, theirs.tokens)
    assert ours.tokens_per_second > 0
    assert ours.prompt_tokens_per_second > 0


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """Before vLLM starts, but for what it alone knows."""
    model = MODELS / "tiny-qwen3moe"
    engine = VllmEngine()
    with pytest.raises(CollabError, match="tokens of text are less than one window of 500"):
        short = tmp_path / "short.txt"
        short.write_text("In the beginning")
        engine.reference(model, Windows((short,), 500), out=tmp_path / "o.npy", threads=1, progress=untold)
    with pytest.raises(CollabError, match="new ones exceed the context of 2048"):
        engine.generate(model, "a", Decoding(3000, ctx=4096), threads=1, write=lambda text: None)
    odd = tmp_path / "odd"
    shutil.copytree(MODELS / "tiny-deepseek-v3", odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"model_type": "nosuch"}))
    with pytest.raises(CollabError, match=f"vLLM cannot run {odd}: .* model type `nosuch`"):
        engine.generate(odd, "a", Decoding(4), threads=1, write=lambda text: None)
    np.save(tmp_path / "other.npy", np.zeros((4, 63, 8 + HEAD), np.uint16))
    np.save(tmp_path / "other.windows.npy", np.zeros((4, 128), np.int64))
    with pytest.raises(CollabError, match="tokenize the text differently"):
        engine.evaluate(model, tmp_path / "other.npy", WINDOWS, threads=1, progress=untold)
