from __future__ import annotations

import pytest
from collab_llamacpp.kernels import GgmlKernels
from model_bench import Bench, RememberingKernels, make_bench
from random_moe import write_deepseek2, write_qwen3moe


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
