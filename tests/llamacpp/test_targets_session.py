"""A target's session gives what plain llama_cpp, calibration and evaluation see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.targets.builds import LIBRARIES, backend_libraries
from collab_llamacpp.targets.llamacpp_targets import LlamaCppTargets
from engine_calls import CTX, ENGINE, calibrate, plain_logits
from gguf import LlamaFileType
from small_models.llama_cpp_calls import llama_quantize
from small_models.tiny_moe import tokens_of
from target_child import Arrays, in_child, session_job

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.packed_logits import pack_logits
from collab_plugin.engines.target import LoadOptions, NotOfferedError
from collab_plugin.errors import CollabError
from collab_plugin.progress import untold

# llama_cpp.Llama's own cache, which evaluation and calibration have too.
F16 = LoadOptions(ctx=CTX, kv_type="f16")
PROMPT, STEPS = 20, 5


@pytest.fixture(scope="module")
def tokens(prose: Path) -> list[int]:
    return tokens_of(prose.read_text("utf-8"))[:CTX]


def seen(name: str, model: Path, tokens: list[int], options: LoadOptions, folder: Path) -> Arrays:
    done, found = in_child(name, session_job(model, tokens, options, prompt=PROMPT, steps=STEPS), folder)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", ["qwen3moe", "grouped"])
def test_logits_are_those_of_plain_llama_cpp_and_of_evaluation(
    name: str, tokens: list[int], prose: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    found = seen("llamacpp:cpu", model, tokens, F16, tmp_path)
    assert found["logits"].dtype == np.float32
    np.testing.assert_array_equal(found["logits"], plain_logits(model, [tokens], tmp_path / "plain.npy")[0])
    np.testing.assert_array_equal(found["again"], found["logits"], err_msg="two runs on one device")
    out = tmp_path / "evaluation.npy"
    ENGINE.reference(model, Windows((prose,), CTX, 1), out=out, threads=1, progress=untold)
    np.testing.assert_array_equal(pack_logits(found["logits"][CTX // 2 : CTX - 1]), np.load(out)[0])


def test_batches_top_and_greedy_follow_from_the_logits(qwen3moe: Path, tokens: list[int], tmp_path: Path) -> None:
    found = seen("llamacpp:cpu", qwen3moe, tokens, F16, tmp_path)
    logits = found["logits"].astype(np.float64)
    for batch in (1, 7):
        # Kernels for one row and for many round differently.
        assert np.square(found[f"batch.{batch}"] - logits).sum() / np.square(logits).sum() < 1e-6
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(found["top.ids"], np.argsort(-logits, axis=-1)[:, :3])
    np.testing.assert_allclose(found["top.values"], np.sort(log_p, axis=-1)[:, ::-1][:, :3], rtol=1e-5)
    assert found["greedy.ids"].shape == found["greedy.values"].shape == (STEPS, 5)
    taken = found["greedy.ids"][:, 0].tolist()
    whole = plain_logits(qwen3moe, [tokens[:PROMPT] + taken], tmp_path / "greedy.npy")[0]
    assert whole.argmax(-1)[PROMPT - 1 : -1].tolist() == taken


@pytest.mark.parametrize("name", ["qwen3moe", "grouped"])
def test_routing_is_what_calibration_counts(
    name: str, tokens: list[int], prose: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    found = seen("llamacpp:cpu", model, tokens, F16, tmp_path)
    stats = calibrate(model, prose, chunks=1)
    layers = sorted(int(key.removeprefix("ids.")) for key in found if key.startswith("ids."))
    assert layers == sorted(stats.routing)
    for layer in layers:
        ids = found[f"ids.{layer}"]
        assert ids.dtype == np.int32 and len(ids) == CTX
        assert all(len(set(row)) == len(row) for row in ids.tolist()), "an expert is chosen once a token"
        count = stats.routing[layer].count
        np.testing.assert_array_equal(np.bincount(ids.ravel(), minlength=len(count)), count)


def test_cache_types(qwen3moe: Path, tokens: list[int], tmp_path: Path) -> None:
    found = {
        kv_type: seen("llamacpp:cpu", qwen3moe, tokens, LoadOptions(ctx=CTX, kv_type=kv_type), tmp_path)["logits"]
        for kv_type in ("f32", "f16", "q8_0")
    }

    def error(kv_type: str) -> float:
        return float(np.square(found[kv_type] - found["f32"]).sum() / np.square(found["f32"]).sum())

    assert 0 < error("f16") < error("q8_0") < 1e-3


def test_repacking_is_used_and_can_be_left_out(qwen3moe: Path, tokens: list[int], tmp_path: Path) -> None:
    coarse = tmp_path / "q4_0.gguf"
    llama_quantize(qwen3moe, coarse, "Q4_0", LlamaFileType.MOSTLY_Q4_0, open_gguf(qwen3moe), None)
    logs, logits = {}, {}
    for name in ("llamacpp:cpu", "llamacpp:cpu-norepack"):
        done, found = in_child(name, session_job(coarse, tokens, F16, prompt=PROMPT, steps=STEPS), tmp_path)
        assert done.returncode == 0, done.stderr
        logs[name], logits[name] = done.stderr, found["logits"]
    if "CPU_REPACK" not in logs["llamacpp:cpu"]:
        pytest.skip("llama.cpp repacks nothing on this processor")
    assert "CPU_REPACK model buffer" not in logs["llamacpp:cpu-norepack"]
    difference = np.square(logits["llamacpp:cpu"] - logits["llamacpp:cpu-norepack"]).sum()
    assert difference / np.square(logits["llamacpp:cpu"]).sum() < 2e-3


@pytest.mark.parametrize("code_path", ["x64", "sse42", "haswell"])
def test_other_code_paths(
    code_path: str,
    qwen3moe: Path,
    tokens: list[int],
    llama_libraries: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LIBRARIES.variable, str(llama_libraries))
    name = f"llamacpp:cpu-{code_path}"
    info = next((info for info in LlamaCppTargets().find() if info.name == name), None)
    if info is None or info.absent:
        pytest.skip(info.absent if info and info.absent else f"no code path {code_path} here")
    here = seen("llamacpp:cpu", qwen3moe, tokens, F16, tmp_path)["logits"]
    there = seen(name, qwen3moe, tokens, F16, tmp_path)["logits"]
    assert 0 < np.square(here - there).sum() / np.square(here).sum() < 1e-5


@pytest.mark.slow
def test_vulkan(
    qwen3moe: Path, tokens: list[int], llama_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Mesa's software driver; every layer is on the device."""
    if "vulkan" not in backend_libraries(llama_libraries):
        pytest.skip("no Vulkan: its packages could not be had when the libraries were built")
    monkeypatch.setenv(LIBRARIES.variable, str(llama_libraries))
    # One size of batch: each has kernels of its own, and compiling them for a CPU takes seconds.
    job = session_job(qwen3moe, tokens[:24], F16, steps=0)
    _, here = in_child("llamacpp:cpu", job, tmp_path)
    done, there = in_child("llamacpp:vulkan:0", job, tmp_path, seconds=600)
    assert done.returncode == 0, done.stderr
    assert "Vulkan0 model buffer size" in done.stderr and "offloaded 3/3 layers" in done.stderr
    np.testing.assert_array_equal(there["again"], there["logits"], err_msg="two runs on one device")
    assert 0 < np.square(here["logits"] - there["logits"]).sum() / np.square(here["logits"]).sum() < 1e-4
    for layer in (0, 1):
        same = np.sort(here[f"ids.{layer}"]) == np.sort(there[f"ids.{layer}"])
        assert same.mean() > 0.95


def test_a_file_that_aborts_llama_cpp_is_the_child_s_death(tmp_path: Path, tokens: list[int]) -> None:
    """Four groups of one expert: an assertion of llama.cpp (llama-model.cpp:1365)."""
    from small_models.tiny_moe import write_deepseek2

    model = write_deepseek2(tmp_path / "model.gguf", experts=4, groups=4)
    done, _ = in_child("llamacpp:cpu", session_job(model, tokens, F16, prompt=PROMPT, steps=STEPS), tmp_path)
    assert done.returncode == -6
    assert "GGML_ASSERT" in done.stderr


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("long", f"{CTX + 1} tokens and 0 more exceed the context of {CTX}"),
        ("strange", "token ids must be from 0 to 287"),
        ("none", "there are no tokens"),
    ],
)
def test_mistakes(kind: str, message: str, qwen3moe: Path, tokens: list[int], tmp_path: Path) -> None:
    given = {"long": [*tokens, 1], "strange": [288], "none": []}[kind]
    done, _ = in_child("llamacpp:cpu", session_job(qwen3moe, given, F16, prompt=PROMPT, steps=STEPS), tmp_path)
    assert done.returncode == 1
    assert f"{CollabError.__name__}: {message}" in done.stderr


def test_a_cache_that_a_model_cannot_have(deepseek2: Path, tokens: list[int], tmp_path: Path) -> None:
    """MLA's rows are no multiple of Q8_0's block here."""
    job = session_job(deepseek2, tokens, LoadOptions(ctx=CTX, kv_type="q8_0"), prompt=PROMPT, steps=STEPS)
    done, _ = in_child("llamacpp:cpu", job, tmp_path)
    assert f"{NotOfferedError.__name__}: llama.cpp makes no q8_0 cache for this model here" in done.stderr
