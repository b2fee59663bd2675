"""Calibration in llama.cpp: counts, router weights, REAP and importance matrix, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from collab_llamacpp.native.model import LoadedModel
from engine_calls import CTX, ENGINE, calibrate
from gguf import LlamaFileType
from qwen3moe_reference import Trace, forward
from small_models.llama_cpp_calls import llama_quantize
from small_models.tiny_moe import tokens_of

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import Topology, topology_of
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.text_windows import text_cut
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import read_stats
from collab_plugin.stats.trace_file import read_trace

MODELS = ["qwen3moe", "deepseek2", "grouped"]


@pytest.fixture(scope="session")
def calibrated(request: pytest.FixtureRequest, prose: Path) -> dict[str, tuple[Topology, Stats]]:
    found = {}
    for name in MODELS:
        path = request.getfixturevalue(name)
        found[name] = topology_of(open_gguf(path)), calibrate(path, prose)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_sees_every_token(model: str, calibrated: dict[str, tuple[Topology, Stats]]) -> None:
    topology, stats = calibrated[model]
    assert stats.tokens >= 4 * CTX
    assert stats.tokens % CTX == 0
    assert tuple(sorted(stats.routing)) == topology.moe_layers
    assert sorted(stats.streams) == list(range(topology.block_count))
    assert set(stats.rounding) == set(stats.imatrix)
    assert all(1e-6 < max(r.of_256, r.of_32) < 0.01 for r in stats.rounding.values())
    assert all(r.of_32 < r.of_256 for name, r in stats.rounding.items() if "ffn_gate" in name)
    for layer, routing in stats.routing.items():
        assert routing.tokens == stats.tokens, layer
        assert routing.count.sum() == stats.tokens * topology.experts_used, layer
        assert len(routing.count) == topology.expert_count


@pytest.mark.parametrize("model", MODELS)
def test_renormalised_weights_sum_to_scale(model: str, calibrated: dict[str, tuple[Topology, Stats]]) -> None:
    topology, stats = calibrated[model]
    assert topology.weights_scale == (1.0 if model == "qwen3moe" else 2.5)
    for routing in stats.routing.values():
        assert routing.weight_sum is not None
        assert routing.weight_sum.sum() == pytest.approx(stats.tokens * topology.weights_scale, rel=1e-5)
        # Never more than the scale a selection, and something for each.
        assert (routing.weight_sum <= routing.count * topology.weights_scale * (1 + 1e-6)).all()
        assert ((routing.weight_sum > 0) == (routing.count > 0)).all()


@pytest.mark.parametrize("model", MODELS)
def test_importance_matrix_identities(model: str, calibrated: dict[str, tuple[Topology, Stats]]) -> None:
    """The same input meets every matrix of a block, so that sums over experts are known from the router's."""
    topology, stats = calibrated[model]
    for layer in topology.moe_layers:
        b = f"blk.{layer}"
        experts = [stats.imatrix[f"{b}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")]
        for entry in experts:
            np.testing.assert_array_equal(entry.count, stats.routing[layer].count)
        gate, up, _ = experts
        np.testing.assert_array_equal(gate.sum2, up.sum2)
        router = stats.imatrix[f"{b}.ffn_gate_inp.weight"]
        assert router.count.tolist() == [stats.tokens]
        np.testing.assert_allclose(gate.sum2.sum(0), topology.experts_used * router.sum2[0], rtol=1e-4)
        if topology.shared_experts:
            shared = stats.imatrix[f"{b}.ffn_gate_shexp.weight"]
            np.testing.assert_allclose(shared.sum2, router.sum2, rtol=1e-6)
            assert stats.imatrix[f"{b}.ffn_down_shexp.weight"].count.tolist() == [stats.tokens]


def test_mla_heads_have_a_vector_each(calibrated: dict[str, tuple[Topology, Stats]]) -> None:
    _, stats = calibrated["deepseek2"]
    key, value = stats.imatrix["blk.1.attn_k_b.weight"], stats.imatrix["blk.1.attn_v_b.weight"]
    assert key.sum2.shape == (1, 4 * 32)
    assert value.sum2.shape == (1, 4 * 64)
    heads = [key.vector(head, 32) for head in range(4)]
    assert not any(np.allclose(heads[0], other, rtol=0.01) for other in heads[1:])


@pytest.fixture(scope="session")
def traces(qwen3moe: Path, prose: Path) -> list[Trace]:
    checkpoint, ids = open_gguf(qwen3moe), np.array(tokens_of(prose.read_text("utf-8")))
    return [forward(checkpoint, ids[i : i + CTX]) for i in range(0, 2 * CTX, CTX)]


def test_equals_numpy(qwen3moe: Path, prose: Path, traces: list[Trace]) -> None:
    """Everything in the statistics recomputed by hand. llama.cpp keeps keys and values in float16."""
    stats = calibrate(qwen3moe, prose, chunks=2)
    assert stats.tokens == 2 * CTX
    for layer, routing in stats.routing.items():
        ids = np.concatenate([t.ids[layer] for t in traces]).ravel()
        experts = len(routing.count)

        def by_expert(values: list[np.ndarray], ids: np.ndarray = ids, experts: int = experts) -> np.ndarray:
            return np.bincount(ids, np.concatenate(values).ravel(), minlength=experts)

        np.testing.assert_array_equal(routing.count, np.bincount(ids, minlength=experts))
        np.testing.assert_allclose(routing.weight_sum, by_expert([t.weights[layer] for t in traces]), rtol=2e-3)
        np.testing.assert_allclose(routing.reap_sum, by_expert([t.norms[layer] for t in traces]), rtol=2e-3)
        after_attention, after_layer = 1 / (1 / np.concatenate([t.streams[layer] for t in traces], 1)).mean(1)
        assert stats.streams[layer].after_attention == pytest.approx(after_attention, rel=2e-3)
        assert stats.streams[layer].after_layer == pytest.approx(after_layer, rel=2e-3)
    assert set(stats.imatrix) == set(traces[0].sum2)
    for name, entry in stats.imatrix.items():
        want = sum(t.sum2[name] for t in traces)
        np.testing.assert_allclose(entry.sum2, want, rtol=0.02, atol=2e-3 * want.max(), err_msg=name)


@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_a_quantized_copy_tells_the_same(
    model: str,
    calibrated: dict[str, tuple[Topology, Stats]],
    prose: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    source, copy = request.getfixturevalue(model), tmp_path / "q8_0.gguf"
    llama_quantize(source, copy, "Q8_0", LlamaFileType.MOSTLY_Q8_0, open_gguf(source), None)
    _, exact = calibrated[model]
    ours = calibrate(copy, prose)
    for layer, routing in exact.routing.items():
        other = ours.routing[layer]
        moved = np.abs(routing.count - other.count).sum() / 2
        assert moved <= 0.03 * routing.count.sum(), f"layer {layer}: {moved} selections changed"
        np.testing.assert_allclose(other.weight_sum, routing.weight_sum, rtol=0.1)
        np.testing.assert_allclose(other.reap_sum, routing.reap_sum, rtol=0.1)
    assert set(ours.imatrix) == set(exact.imatrix)


def test_texts_add_up(qwen3moe: Path, prose: Path, code: Path) -> None:
    """No window spans two texts, so the whole is the sum of its parts."""
    first, second = (calibrate(qwen3moe, text, chunks=2) for text in (prose, code))
    both = calibrate(qwen3moe, prose, code, chunks=2)
    assert both.datasets == ("prose.txt", "code.py")
    assert both.tokens == first.tokens + second.tokens == 4 * CTX
    for layer, routing in both.routing.items():
        np.testing.assert_array_equal(routing.count, first.routing[layer].count + second.routing[layer].count)
    name = "blk.1.ffn_down_exps.weight"
    np.testing.assert_allclose(both.imatrix[name].sum2, first.imatrix[name].sum2 + second.imatrix[name].sum2, rtol=1e-5)


def test_chunks_limit_each_text(qwen3moe: Path, prose: Path, code: Path) -> None:
    assert calibrate(qwen3moe, prose, code, chunks=1).tokens == 2 * CTX
    whole = calibrate(qwen3moe, code, ctx=128)
    assert whole.tokens == len(tokens_of(code.read_text("utf-8"))) // 128 * 128
    assert whole.chunk_size == 128


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments), "--threads", "1"])


def test_command_writes_stats(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    out = tmp_path / "stats.gguf"
    options = ("--ctx", CTX, "--chunks", 1, "--json", "--seed")
    result = run(qwen3moe, "--text", prose, *options, 7, "-o", out)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["tokens"] == told["ctx"] == CTX
    assert [row["layer"] for row in told["layers"]] == [0, 1]
    direct, read = calibrate(qwen3moe, prose, chunks=1, seed=7), read_stats(out)
    assert read.seed == 7
    for layer, routing in direct.routing.items():
        np.testing.assert_array_equal(read.routing[layer].count, routing.count)
        np.testing.assert_allclose(read.routing[layer].reap_sum, routing.reap_sum, rtol=1e-9)
    np.testing.assert_array_equal(read.text_sketch, direct.text_sketch)
    assert (read.model_id or "").startswith("sha256:")


def test_a_trace_holds_what_was_counted(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "stats.gguf", tmp_path / "trace.npz"
    result = run(qwen3moe, "--text", prose, "--ctx", CTX, "--chunks", 3, "-o", out, "--trace", trace, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trace"] == str(trace)
    found, stats = read_trace(trace), read_stats(out)
    assert found.starts == (0, CTX, 2 * CTX)
    assert (found.labels, found.model_id) == ((prose.name,) * 3, stats.model_id)
    for at, layer in enumerate(found.layers):
        np.testing.assert_array_equal(found.counts[at], stats.routing[layer].count)
    together = Windows((prose,), CTX, 3, seed=0, together=3)
    ENGINE.trace(qwen3moe, together, out=trace, threads=1, progress=untold)
    assert (read_trace(trace).chosen == found.chosen).mean() > 0.99, "the order of tokens, but for near ties"
    refusal = refused(run(qwen3moe, "--text", prose, "-o", out, "--trace", out))
    assert str(out) in refusal


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("calibrating")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"too little", "10 tokens of text are less than one window of 64"),
        (b"gr\xfc\xdfe " * 100, "is not UTF-8 text (byte 2)"),
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (None, "cannot read the text"),
    ],
)
def test_text_that_will_not_do(content: bytes | None, says: str, qwen3moe: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "stats.gguf"
    if content is not None:
        text.write_bytes(content)
    assert says in refused(run(qwen3moe, "--text", text, "--ctx", CTX, "-o", out))
    assert not out.exists()


def test_text_that_is_a_folder(qwen3moe: Path, tmp_path: Path) -> None:
    assert "cannot read the text" in refused(run(qwen3moe, "--text", tmp_path, "-o", tmp_path / "stats.gguf"))


def test_output_without_a_folder(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    assert "make the folder first" in refused(run(qwen3moe, "--text", prose, "-o", tmp_path / "no" / "stats.gguf"))


def test_truncated_model(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(qwen3moe, broken)
    with broken.open("r+b") as file:
        file.truncate(qwen3moe.stat().st_size - 1000)
    assert "truncated" in refused(run(broken, "--text", prose, "-o", tmp_path / "stats.gguf"))


def test_calibrate_on_stdin(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    """The stats are those of the text as a file, but for its name."""
    options = ("--ctx", "32", "--chunks", "4", "--threads", "1")
    whole = ["calibrate", str(qwen3moe), "--text", str(prose), *options, "-o", str(tmp_path / "file.gguf")]
    assert CliRunner().invoke(main, whole).exit_code == 0
    result = CliRunner().invoke(
        main,
        ["calibrate", str(qwen3moe), "--text", "-", *options, "-o", str(tmp_path / "stdin.gguf")],
        input=prose.read_bytes(),
    )
    assert result.exit_code == 0, result.output
    ours, theirs = read_stats(tmp_path / "stdin.gguf"), read_stats(tmp_path / "file.gguf")
    assert (ours.datasets, theirs.datasets) == (("stdin",), (prose.name,))
    assert ours.tokens == theirs.tokens == 4 * 32
    assert ours.text_sketch.tolist() == theirs.text_sketch.tolist()
    for layer, routing in theirs.routing.items():
        assert ours.routing[layer].count.tolist() == routing.count.tolist()


def test_chats_are_read_through_the_model_s_template(tmp_path: Path) -> None:
    """Of a converted folder: its template, its control tokens as tokens; the same in plain text are text."""
    folder, model = open_checkpoint(Path(__file__).parents[1] / "models" / "tiny-qwen3moe"), tmp_path / "m.gguf"
    compress(folder, copy_plan(folder), None, model, kernels=None, threads=1, report=untold)
    says = [{"role": "user", "content": "Name a river. " * 20}, {"role": "assistant", "content": "The Elbe. " * 20}]
    chats, plain = tmp_path / "chats.jsonl", tmp_path / "plain.txt"
    chats.write_text(json.dumps({"messages": says}) + "\n")
    plain.write_text("<|im_start|>user\n" + says[0]["content"])
    with LoadedModel(model, ctx=16, threads=1, model_only=True) as session:
        metadata = open_gguf(model).metadata
        found = [session.windows(text_cut(Windows((text,), 16), metadata)) for text in (chats, plain)]
        marks = [int(session.tokenize(mark, special=True, add=False)[0]) for mark in ("<|im_start|>", "<|im_end|>")]
    tokens = np.concatenate(found[0])
    assert tokens[0] == marks[0] and (tokens == marks[0]).sum() == 2 and marks[1] in tokens
    assert not np.isin(marks, np.concatenate(found[1])).any()


def test_proxy(qwen3moe: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stats of a small copy belong to the original; the copy is made once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("--text", prose, "--ctx", CTX, "--chunks", 1, "--proxy", "q4_k", "-o", tmp_path / "stats.gguf")
    assert run(qwen3moe, *options).exit_code == 0
    (copy,) = (tmp_path / "cache" / "collab-plugin" / "gguf").glob("*-Q4_K.gguf")
    made, whole = open_gguf(copy), open_gguf(qwen3moe)
    assert {made.tensors[n].type.name for n in made.tensors if n.endswith("_exps.weight")} == {"Q4_K"}
    assert read_stats(tmp_path / "stats.gguf").model_id == model_id(made) == model_id(whole)
    assert copy.stat().st_size < qwen3moe.stat().st_size / 2
    before = copy.stat().st_mtime_ns
    assert run(qwen3moe, *options).exit_code == 0
    assert copy.stat().st_mtime_ns == before
    for kind, says in (
        ("IQ2_XXS", "cannot be made without an importance matrix"),
        ("F16", "without"),
        ("Q9", "unknown"),
    ):
        assert says in refused(run(qwen3moe, *options[:-3], kind, *options[-2:]))


@pytest.mark.parametrize("model", MODELS)
def test_windows_run_together(model: str, prose: Path, request: pytest.FixtureRequest) -> None:
    """Five windows in batches of two give what five alone give, but for the order of sums."""
    path = request.getfixturevalue(model)
    cut = Windows((prose,), CTX, 5)
    alone, together = (
        ENGINE.calibrate(path, dataclasses.replace(cut, together=count), threads=1, progress=untold) for count in (1, 2)
    )
    assert alone.tokens == together.tokens == 5 * CTX
    for layer, routing in alone.routing.items():
        assert np.abs(together.routing[layer].count - routing.count).sum() <= 4  # near ties
        np.testing.assert_allclose(together.routing[layer].weight_sum, routing.weight_sum, rtol=0.02, atol=0.05)
    for name, entry in alone.imatrix.items():
        np.testing.assert_allclose(together.imatrix[name].sum2.sum(), entry.sum2.sum(), rtol=1e-3)
