"""Evaluation in llama.cpp: the figures are those of plain numpy on the logits of plain llama_cpp."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from engine_calls import CTX, ENGINE, evaluate, plain_logits
from gguf import LlamaFileType
from small_models.gguf_copies import write_copy
from small_models.llama_cpp_calls import llama_quantize
from small_models.tiny_moe import tokens_of, write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.packed_logits import MOST_MOVED, kld_bound
from collab_plugin.errors import CollabError
from collab_plugin.progress import untold


@pytest.fixture(scope="session")
def coarse(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen3moe at Q4_0."""
    out = tmp_path_factory.mktemp("coarse") / "q4_0.gguf"
    llama_quantize(qwen3moe, out, "Q4_0", LlamaFileType.MOSTLY_Q4_0, open_gguf(qwen3moe), None)
    return out


@pytest.mark.parametrize("model", ["qwen3moe", "grouped"])
def test_a_model_against_itself(model: str, prose: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    result = evaluate(path, path, prose, chunks=3)
    assert result.mean_kld == pytest.approx(0, abs=1e-9)
    assert result.kld_p99 == pytest.approx(0, abs=1e-9)
    assert result.same_top1 == 1
    assert result.ppl == result.ppl_original
    assert result.tokens == 3 * (CTX // 2 - 1)
    assert result.text_overlap is None


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.slow
def test_figures_are_those_of_numpy(qwen3moe: Path, coarse: Path, prose: Path, code: Path, tmp_path: Path) -> None:
    windows = []
    for text in (prose, code):
        ids = tokens_of(text.read_text("utf-8"))
        windows += [ids[i : i + CTX] for i in range(0, 2 * CTX, CTX)]
    p, q = (
        _softmax(plain_logits(path, windows, tmp_path / f"{path.stem}.npy").astype(np.float64))
        for path in (coarse, qwen3moe)
    )
    nll, nll_original, kld, same = [], [], [], []
    for w, ids in enumerate(windows):
        for at in range(CTX // 2, CTX - 1):
            nll.append(-np.log(p[w, at, ids[at + 1]]))
            nll_original.append(-np.log(q[w, at, ids[at + 1]]))
            kld.append(np.sum(q[w, at] * np.log(q[w, at] / p[w, at])))
            same.append(p[w, at].argmax() == q[w, at].argmax())
    result = evaluate(coarse, qwen3moe, prose, code, chunks=2)
    assert result.tokens == len(kld) == 4 * (CTX // 2 - 1)
    assert result.ppl == pytest.approx(np.exp(np.mean(nll)), rel=1e-3)
    assert result.ppl_original == pytest.approx(np.exp(np.mean(nll_original)), rel=1e-3)
    assert result.mean_kld > 0.001, "the models must differ, or the test proves nothing"
    assert result.mean_kld == pytest.approx(np.mean(kld), rel=1e-2)
    assert result.mean_kld_stderr == pytest.approx(np.std(kld, ddof=1) / np.sqrt(len(kld)), rel=1e-2)
    shares = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 99.9, "max": 100}
    for name, share in shares.items():
        assert getattr(result, f"kld_{name}") == pytest.approx(np.percentile(kld, share), rel=1e-2), name
    assert result.same_top1 == pytest.approx(np.mean(same), abs=1.5 / len(kld))


def _reference(original: Path, out: Path, *texts: Path, chunks: int | None) -> Path:
    ENGINE.reference(original, Windows(texts, CTX, chunks), out=out, threads=1, progress=untold)
    return out


def test_written_and_running_original_give_the_same_figures(
    qwen3moe: Path, coarse: Path, prose: Path, code: Path, tmp_path: Path
) -> None:
    reference = _reference(qwen3moe, tmp_path / "reference.npy", prose, code, chunks=2)
    kept, running = (evaluate(coarse, original, prose, code, chunks=2) for original in (reference, qwen3moe))
    assert (kept.ppl, kept.same_top1, kept.tokens) == (running.ppl, running.same_top1, running.tokens)
    assert kept.mean_kld == pytest.approx(running.mean_kld, abs=kld_bound(running.mean_kld))
    assert kept.mean_kld == pytest.approx(running.mean_kld, rel=1e-4)
    assert kept.ppl_original == pytest.approx(running.ppl_original, rel=2 * MOST_MOVED)
    size = 2 * (4 * (CTX // 2 - 1)) * (288 + 4)  # 16 bits, scored positions, vocabulary
    assert size < reference.stat().st_size <= size + 256


def test_a_reference_of_other_windows_is_refused(qwen3moe: Path, prose: Path, code: Path, tmp_path: Path) -> None:
    reference = _reference(qwen3moe, tmp_path / "reference.npy", prose, chunks=2)
    with pytest.raises(CollabError, match="tokenize the text differently"):
        evaluate(qwen3moe, reference, code, chunks=2)
    with pytest.raises(CollabError, match="tokenize the text differently"):
        evaluate(qwen3moe, reference, prose, chunks=3)


def run(*arguments: object, command: str = "evaluate") -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def test_json(qwen3moe: Path, coarse: Path, prose: Path) -> None:
    result = run(coarse, "--against", qwen3moe, "--text", prose, "--ctx", CTX, "--chunks", 2, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {"ppl", "ppl_original", "mean_kld", "mean_kld_stderr", "kld_p99", "same_top1"} <= set(told)
    direct = evaluate(coarse, qwen3moe, prose, chunks=2)
    assert told["mean_kld"] == pytest.approx(direct.mean_kld, rel=1e-3)
    assert 0 < told["mean_kld"] <= told["kld_p99"]
    percentiles = [told[f"kld_{name}"] for name in ("p50", "p90", "p95", "p99", "p999", "max")]
    assert percentiles == sorted(percentiles)


def test_table(qwen3moe: Path, coarse: Path, prose: Path) -> None:
    result = run(coarse, "--against", qwen3moe, "--text", prose, "--ctx", CTX, "--chunks", 1, "--threads", 1)
    assert result.exit_code == 0, result.output
    for word in ("perplexity", "mean KL divergence", "same top-1", "99.9th percentile", "largest KL divergence"):
        assert word in result.stdout


def test_text_of_the_calibration_is_noticed(qwen3moe: Path, prose: Path, code: Path, tmp_path: Path) -> None:
    stats, plan, out = tmp_path / "stats.gguf", tmp_path / "plan.json", tmp_path / "out.gguf"
    few = ("--threads", 1)
    steps = (
        ("calibrate", qwen3moe, "--text", prose, "--ctx", CTX, "-o", stats, *few),
        ("plan", qwen3moe, "--stats", stats, "--keep-types", "-o", plan, *few),
        ("compress", qwen3moe, "--plan", plan, "--stats", stats, "-o", out, *few),
    )
    for command, *arguments in steps:
        result = run(*arguments, command=command)
        assert result.exit_code == 0, result.output
    judged = {
        text: run(out, "--against", qwen3moe, "--text", text, "--ctx", CTX, "--json", *few) for text in (prose, code)
    }
    assert "of the calibration text's n-grams occur in this text" in judged[prose].stderr
    assert json.loads(judged[prose].stdout)["text_overlap"] > 0.95
    assert "warning" not in judged[code].stderr
    assert json.loads(judged[code].stdout)["text_overlap"] == 0


def test_another_vocabulary_is_refused(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    tokens = list(open_gguf(qwen3moe).metadata["tokenizer.ggml.tokens"].value)
    e, a = tokens.index("e"), tokens.index("a")
    tokens[e], tokens[a] = tokens[a], tokens[e]
    key = "tokenizer.ggml.tokens"
    stored = open_gguf(qwen3moe).metadata[key]
    other = write_copy(qwen3moe, tmp_path / "other.gguf", keys={key: dataclasses.replace(stored, value=tokens)})
    with pytest.raises(CollabError, match="tokenize the text differently"):
        evaluate(other, qwen3moe, prose, chunks=1)


def test_one_line_for_each_mistake(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    cases = (
        ((missing, "--against", qwen3moe, "--text", prose), "does not exist"),
        ((qwen3moe, "--against", missing, "--text", prose), "does not exist"),
        ((qwen3moe, "--against", qwen3moe, "--text", empty), "is empty"),
        ((qwen3moe, "--against", qwen3moe, "--text", prose, "--ctx", 4096), "give more text or lower --ctx"),
        ((qwen3moe, "--against", qwen3moe, "--text", prose, "--engine", "nope"), "unknown engine 'nope'"),
        ((prose, "--against", qwen3moe, "--text", prose), "no model in a known format"),
    )
    for arguments, says in cases:
        result = run(*arguments, "--threads", 1)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        # A window longer than the model was trained for has a warning before.
        lines = [line for line in result.stderr.splitlines() if not line.startswith(("evaluating", "warning:"))]
        assert len(lines) == 1, lines
        assert says in lines[0]
        assert result.stdout == ""


def test_weights_without_sense_are_refused(prose: Path, tmp_path: Path) -> None:
    """A model whose logits are not numbers has no figures."""
    model = write_qwen3moe(tmp_path / "model.gguf")
    info = open_gguf(model)
    raw = info.read_raw("output.weight")
    from collab_plugin.checkpoint.gguf import open_shard

    header, _ = open_shard(model)
    with model.open("r+b") as file:
        file.seek(header.tensors["output.weight"].offset)
        file.write(np.full(raw.shape[-1] // 4, np.inf, np.float32).tobytes())
    with pytest.raises(CollabError, match="not finite"):
        evaluate(model, model, prose, chunks=1)
