"""`calibrate --engine vllm` counts what llama.cpp counts in the same weights and text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from collab_llamacpp import llamacpp_engine as engine_module
from collab_llamacpp.calibrate.llamacpp_child import run_job
from real_vllm import MODELS, ROOT, TRAINED, Vllm
from small_models.hand_made_plans import typed_plan

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import read_stats

pytestmark = pytest.mark.slow

TEXT = ROOT / "tests" / "texts" / "english.calibration.txt"
WINDOWS = ("--text", str(TEXT), "--ctx", "128", "--chunks", "8")


@pytest.fixture(scope="module", params=TRAINED)
def both(request: pytest.FixtureRequest, vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stats of vLLM and of llama.cpp, in float32: BF16 weights round activations in llama.cpp, and its cache is F16."""
    model, folder = MODELS / request.param, tmp_path_factory.mktemp(request.param)
    checkpoint = open_safetensors(model)
    plan = typed_plan(checkpoint, lambda info: "F32")
    compress(checkpoint, plan, None, folder / "f32.gguf", kernels=None, threads=2, report=lambda done, total=None: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "run_job", lambda job, *rest: run_job(replace(job, kv_type="f32"), *rest))
        for engine, path in (("vllm", model), ("llamacpp", folder / "f32.gguf")):
            done = _run("calibrate", path, *WINDOWS, "--engine", engine, "-o", folder / f"{engine}.gguf", "--json")
            assert done.exit_code == 0, done.output + done.stderr
    return folder / "vllm.gguf", folder / "llamacpp.gguf"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _read(both: tuple[Path, Path]) -> tuple[Stats, Stats]:
    ours, theirs = map(read_stats, both)
    return ours, theirs


def test_same_model_same_text(both: tuple[Path, Path]) -> None:
    ours, theirs = _read(both)
    assert ours.tokens == theirs.tokens == 8 * 128
    assert ours.model_id == theirs.model_id
    np.testing.assert_array_equal(ours.text_sketch, theirs.text_sketch)
    assert ours.engine.startswith("vLLM 0.")


def test_counts_and_router_weights_agree(both: tuple[Path, Path]) -> None:
    ours, theirs = _read(both)
    assert set(ours.routing) == set(theirs.routing)
    for layer, one in ours.routing.items():
        other = theirs.routing[layer]
        assert one.tokens == other.tokens
        moved = int(np.abs(one.count - other.count).sum()) // 2
        assert one.weight_sum is not None
        assert other.weight_sum is not None
        apart = np.abs(one.weight_sum - other.weight_sum).max() / other.weight_sum.max()
        print(f"layer {layer}: {moved} of {one.count.sum()} selections moved, weights apart by {apart:.1e}")
        assert moved <= 1, "two nearly tied experts at most"
        assert apart < (1e-5 if moved == 0 else 1e-2)


def test_plan_takes_it_and_says_what_is_missing(both: tuple[Path, Path], tmp_path: Path) -> None:
    ours, _ = _read(both)
    assert ours.imatrix == {}
    assert all(one.reap_sum is None for one in ours.routing.values())
    model = next(MODELS / name for name in TRAINED if name in str(both[0]))
    asked = ("plan", model, "--stats", both[0], "--keep", "75%", "--budget", "3bpw", "-o", tmp_path / "plan.json")
    done = _run(*asked)
    assert done.exit_code == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert any(note.startswith("NO IMPORTANCE MATRIX: the stats lack it (vLLM 0.") for note in plan["notes"])
    refused = _run(*asked, "--criterion", "reap")
    assert refused.exit_code == 2
    assert "criterion reap needs reap_sum, which the stats lack (vLLM 0." in refused.stderr


def test_a_gguf_is_refused_in_one_line(vllm: Vllm, qwen3moe: Path, tmp_path: Path) -> None:
    done = _run("calibrate", qwen3moe, *WINDOWS, "--engine", "vllm", "-o", tmp_path / "stats.gguf")
    assert done.exit_code == 2
    assert "engine 'vllm' runs folders of safetensors" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLLAB_VLLM", str(tmp_path / "python"))
    done = _run("calibrate", MODELS / TRAINED[0], *WINDOWS, "--engine", "vllm", "-o", tmp_path / "stats.gguf")
    assert done.exit_code == 2
    assert "give the Python of vLLM's environment" in done.stderr
