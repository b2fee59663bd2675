from __future__ import annotations

from pathlib import Path

import pytest
from small_models.tiny_moe import write_deepseek2


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deepseek2 with 8 experts in 4 groups, of which 2 are used."""
    return write_deepseek2(tmp_path_factory.mktemp("grouped") / "model.gguf", experts=8, groups=4)


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 600 tokens of the tiny vocabulary, which has a token a byte."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    text = (Path(__file__).parents[1] / "texts" / "english.calibration.txt").read_text("utf-8")
    path.write_text(text[5000:5600], "utf-8")
    return path


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "code.py"
    text = (Path(__file__).parents[1] / "texts" / "python.validation.txt").read_text("utf-8")
    path.write_text(text[5000:5400], "utf-8")
    return path
