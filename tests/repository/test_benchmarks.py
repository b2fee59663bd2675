"""Benchmarks start: every module is imported, and those with options show them."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if path.name != "__init__.py"
}
ELSEWHERE = ("torch", "transformers", "vllm", "llama_cpp")  # packages of another environment


@pytest.mark.parametrize("module", MODULES)
def test_it_starts(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    options = "ArgumentParser(" in MODULES[module].read_text("utf-8")
    try:
        if options:
            runpy.run_module(module, run_name="__main__")
        else:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ELSEWHERE:
            raise
        pytest.skip(f"needs {error.name}, which another environment has")
    except SystemExit as end:
        assert options
        assert end.code == 0
        assert "usage:" in capsys.readouterr().out
    else:
        assert not options, "it has options and shows none"
