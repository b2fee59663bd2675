"""JSON of commands and bytes of files, as they were recorded before the code was moved (see commands.py)."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from commands import RECORDED, models, records

CASES = sorted(path.stem for path in RECORDED.glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random-qwen3moe", "random-deepseek2", "tiny-deepseek-v3"])
def test_commands_give_what_they_gave(name: str, tmp_path: Path) -> None:
    expected = {case for case in CASES if case.startswith(f"{name}.")}
    seen = set()
    for case, found in records(name, models(tmp_path)[name], tmp_path):
        recorded = json.loads((RECORDED / f"{case}.json").read_text())
        assert comparable(json.loads(json.dumps(found))) == comparable(recorded), case
        seen.add(case)
    assert seen == expected


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Quantized bytes were recorded on x86-64: elsewhere compilers contract multiplications and additions otherwise."""
    if platform.machine() != "x86_64" and "digests" in record:
        record["digests"].pop("data", None)
    return record
