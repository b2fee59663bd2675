from __future__ import annotations

from pathlib import Path

import pytest
from tiny_moe import write_deepseek2, write_qwen3moe


@pytest.fixture(scope="session")
def qwen3moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3moe(tmp_path_factory.mktemp("qwen3moe") / "model.gguf")


@pytest.fixture(scope="session")
def deepseek2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deepseek2(tmp_path_factory.mktemp("deepseek2") / "model.gguf")
