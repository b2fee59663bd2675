"""Fixtures of the planner's tests: random models with statistics, and kernels that remember."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.engines.engine import Windows
from collab_plugin.progress import untold
from collab_plugin.stats.stats_file import write_stats
from small_models import tiny_moe
from small_models.model_bench import Bench, RememberingKernels, load, make_bench
from small_models.random_moe import write_deepseek2, write_qwen3moe


@pytest.fixture(scope="session")
def kernels() -> GgmlKernels:
    return RememberingKernels()


@pytest.fixture(scope="session")
def softmax(tmp_path_factory: pytest.TempPathFactory, kernels: GgmlKernels) -> Bench:
    """qwen3moe: 16 experts, top-4, no groups."""
    return make_bench(tmp_path_factory.mktemp("softmax"), write_qwen3moe, kernels)


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory, kernels: GgmlKernels) -> Bench:
    """deepseek2: 16 experts, top-4, 4 groups of which 2 are used."""
    return make_bench(tmp_path_factory.mktemp("grouped"), write_deepseek2, kernels)


@pytest.fixture(scope="session", params=["softmax", "grouped"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1,100 tokens of the tiny vocabulary: two windows of 512."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    whole = (Path(__file__).parents[1] / "texts" / "english.calibration.txt").read_text("utf-8")
    path.write_text(whole[5000:6150], "utf-8")
    return path


@pytest.fixture(scope="session")
def runnable(tmp_path_factory: pytest.TempPathFactory, kernels: GgmlKernels, text: Path) -> Bench:
    """qwen3moe that llama.cpp runs: 2 layers of 8 experts, top-2, calibrated on ``text``."""
    folder = tmp_path_factory.mktemp("runnable")
    path = tiny_moe.write_qwen3moe(folder / "model.gguf", experts=8)
    stats = LlamaCppEngine().calibrate(path, Windows((text,), 64), threads=1, progress=untold)
    write_stats(folder / "stats.gguf", dataclasses.replace(stats, model_id=model_id(open_gguf(path))))
    return load(path, folder / "stats.gguf", kernels)
