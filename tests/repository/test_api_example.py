"""The code of docs/python.md, run as it is written, in order, on a small model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = {"english.txt": "english.calibration.txt", "held-out.txt": "english.validation.txt"}
PIECE = 9_000
"""Bytes of text: a few windows of 512 tokens."""
# The page's budget is for a model that is 1,400 times as large.
BUDGETS = {"10GB": "14MB"}


def blocks() -> list[str]:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)


@pytest.mark.native
@pytest.mark.slow
def test_code_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process: ggml makes the tables of its smallest types once a process, in 18 seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-30B-A3B").symlink_to(ROOT / "tests" / "models" / "tiny-qwen3moe")
    for name, source in TEXTS.items():
        text = (ROOT / "tests" / "texts" / source).read_bytes()[:PIECE].decode(errors="ignore")
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = "\n".join(blocks())
    for written, used in BUDGETS.items():
        assert written in code
        code = code.replace(written, used)
    exec(code, {})
    printed, errors = capfd.readouterr()
    assert errors == "", "progress and results go where the caller wants them"
    lines = printed.splitlines()
    # progress=print
    assert lines[0] == "compressing ..."
    end = next(i for i, line in enumerate(lines) if not line.startswith("compressing"))
    assert re.fullmatch(r"compressing: ([\d,]+) of \1 weights, [\d,.]+ weights/s, [\d.]+ s", lines[end - 1])
    assert 0 < float(lines[end]) < 1
    measured = {kind: (int(size), float(kld)) for kind, size, kld in (line.split() for line in lines[end + 1 : -1])}
    assert (tmp_path / "Q3_K.gguf").stat().st_size == measured["Q3_K"][0] < measured["Q4_K"][0] <= 14_000_000
    assert measured["Q3_K"][1] > measured["Q4_K"][1] > 0
    assert lines[-1].startswith("`keep` 200%: 64 experts of 32 cannot be kept")
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_names_for_plugins_are_there() -> None:
    page = " ".join((ROOT / "docs" / "python.md").read_text(encoding="utf-8").split())
    line = re.search(r"`(from collab_plugin import [\w, ]+)`", page)
    assert line is not None and {"Allocator", "Family", "hookimpl"} <= set(line[1].replace(",", "").split())
    exec(line[1], {})
