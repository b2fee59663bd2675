"""Our stats and figures beside those of llama.cpp's own tools, built from the same sources."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import LlamaFileType
from small_models.llama_cpp_calls import llama_quantize

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.engine import Windows
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import read_stats, write_stats

CTX = 64
ENGINE = LlamaCppEngine()
# One batch a window, as our engine does it; no memory fitting, no escapes in the text.
SAME = ("-c", str(CTX), "-b", str(CTX), "-ub", str(CTX), "-t", "1", "-ngl", "0", "-fit", "off", "--no-escape")


def run(tool: Path, *arguments: object) -> str:
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    return text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 600 tokens of the tiny vocabulary, which has a token a byte."""
    path = tmp_path_factory.mktemp("text") / "english.txt"
    whole = (Path(__file__).parents[1] / "texts" / "english.calibration.txt").read_text("utf-8")
    path.write_text(whole[5000:5600], "utf-8")
    return path


@pytest.fixture(scope="module")
def stats_file(qwen3moe: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stats = ENGINE.calibrate(qwen3moe, Windows((text,), CTX), threads=1, progress=untold)
    path = tmp_path_factory.mktemp("stats") / "stats.gguf"
    write_stats(path, stats)
    return path


def assert_same_matrix(ours: Stats, theirs: Stats) -> None:
    assert set(theirs.imatrix) == set(ours.imatrix) - {"output.weight"}
    for name, entry in theirs.imatrix.items():
        np.testing.assert_array_equal(ours.imatrix[name].count, entry.count, err_msg=name)
        np.testing.assert_allclose(ours.imatrix[name].sum2, entry.sum2, rtol=1e-4, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_importance_matrix_is_llama_imatrix_s(
    llama_tools: Path, qwen3moe: Path, text: Path, stats_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "imatrix.gguf"
    run(llama_tools / "llama-imatrix", "-m", qwen3moe, "-f", text, "-o", out, "--no-ppl", *SAME)
    assert_same_matrix(read_stats(stats_file), read_stats(out))


@pytest.mark.slow
def test_llama_quantize_takes_our_stats(llama_tools: Path, qwen3moe: Path, stats_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    # IQ2_XXS is refused without an importance matrix.
    run(llama_tools / "llama-quantize", "--imatrix", stats_file, qwen3moe, out, "IQ2_XXS", 1)
    made, source, stats = open_gguf(out), open_gguf(qwen3moe), read_stats(stats_file)
    assert made.metadata["quantize.imatrix.entries_count"].value == len(stats.imatrix)
    name = "blk.1.ffn_up_exps.weight"
    info, kernels = made.tensors[name], GgmlKernels()
    assert info.type.name == "IQ2_XXS"
    kernels.prepare(info.type.name)
    for expert in range(info.shape[0]):
        vector = stats.imatrix[name].vector(expert, info.shape[-1])
        mine = kernels.quantize(source.read(name, expert=expert), info.type.name, vector)
        assert mine.tobytes() == made.read_raw(name, expert=expert).tobytes(), expert


@pytest.mark.slow
def test_evaluate_agrees_with_llama_perplexity(llama_tools: Path, qwen3moe: Path, text: Path, tmp_path: Path) -> None:
    coarse, logits = tmp_path / "coarse.gguf", tmp_path / "logits.bin"
    llama_quantize(qwen3moe, coarse, "Q4_0", LlamaFileType.MOSTLY_Q4_0, open_gguf(qwen3moe), None)
    tool = llama_tools / "llama-perplexity"
    original = figures(
        (r"Final estimate: PPL = ([\d.]+)",),
        (tool, "-m", qwen3moe, "-f", text, "--kl-divergence-base", logits, *SAME),
    )
    theirs = figures(
        (r"Mean PPL\(Q\) +: +([\d.]+)", r"Mean +KLD: +([\d.]+)", r"Same top p: +([\d.]+)"),
        (tool, "-m", coarse, "--kl-divergence-base", logits, "--kl-divergence", *SAME),
    )
    ours = ENGINE.evaluate(coarse, qwen3moe, Windows((text,), CTX), threads=1, progress=untold)
    assert ours.ppl_original == pytest.approx(original[0], rel=5e-4)
    assert ours.ppl == pytest.approx(theirs[0], rel=5e-4)
    # llama-perplexity keeps the original's log probabilities in 16 bits.
    assert ours.mean_kld == pytest.approx(theirs[1], rel=5e-3)
    assert 100 * ours.same_top1 == pytest.approx(theirs[2], abs=0.5)


# What llama-perplexity calls our figures.
THEIR_NAMES = {
    "ppl": r"Mean PPL\(Q\) +: +([\d.]+)",
    "mean_kld": r"Mean +KLD: +([\d.]+)",
    "mean_kld_stderr": r"Mean +KLD: +[\d.]+ ± +([\d.]+)",
    "kld_p50": r"Median +KLD: +([\d.]+)",
    "kld_p90": r"90.0% +KLD: +([\d.]+)",
    "kld_p95": r"95.0% +KLD: +([\d.]+)",
    "kld_p99": r"99.0% +KLD: +([\d.]+)",
    "kld_p999": r"99.9% +KLD: +([\d.]+)",
    "kld_max": r"Maximum KLD: +([\d.]+)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-qwen3moe", "tiny-deepseek-v3"])
def test_trained_models_agree_to_the_third_digit(llama_tools: Path, name: str, tmp_path: Path) -> None:
    """The same windows of 512 tokens through both programs."""
    tests = Path(__file__).parents[1]
    original, coarse, logits = (
        as_gguf(open_checkpoint(tests / "models" / name), 1),
        tmp_path / "coarse.gguf",
        tmp_path / "logits.bin",
    )
    llama_quantize(original, coarse, "Q2_K", LlamaFileType.MOSTLY_Q2_K, open_gguf(original), None)
    text = tests / "texts" / "german.validation.txt"
    same = ("-c", 512, "-b", 512, "-ub", 512, "--chunks", 6, *SAME[6:])
    tool = llama_tools / "llama-perplexity"
    base = figures(
        (r"Final estimate: PPL = ([\d.]+)",),
        (tool, "-m", original, "-f", text, "--kl-divergence-base", logits, *same),
    )
    found = figures(
        tuple(THEIR_NAMES.values()),
        (tool, "-m", coarse, "--kl-divergence-base", logits, "--kl-divergence", *same),
    )
    ours = ENGINE.evaluate(coarse, original, Windows((text,), 512, 6), threads=1, progress=untold)
    theirs = dict(zip(THEIR_NAMES, found, strict=True))
    assert ours.tokens == 6 * 255
    assert ours.ppl_original == pytest.approx(base[0], rel=5e-4)
    assert ours.ppl == pytest.approx(theirs["ppl"], rel=5e-4)
    # llama-perplexity keeps the original's log probabilities in 16 bits.
    assert ours.mean_kld == pytest.approx(theirs["mean_kld"], rel=5e-4)
    for key in THEIR_NAMES:
        assert getattr(ours, key) == pytest.approx(theirs[key], rel=1e-3), key


def figures(patterns: tuple[str, ...], command: tuple[object, ...]) -> list[float]:
    """What a tool prints; run again when its last lines are lost, as they may be (common/log.cpp:457)."""
    text = ""
    for _ in range(6):
        text = run(Path(str(command[0])), *command[1:])
        found = [re.search(pattern, text) for pattern in patterns]
        if all(found):
            return [float(match[1]) for match in found if match]
    raise AssertionError(text)
