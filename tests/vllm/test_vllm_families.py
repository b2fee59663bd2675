"""Tiny random checkpoints of every family, pruned by vLLM's load format and by transformers.

Cases called varied keep another number of experts in each layer, the others the same.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CASES = (
    *("qwen2-moe-varied", "qwen3-moe-varied", "olmoe-varied", "mixtral-varied", "deepseek-v2-varied"),
    *("deepseek-v3-varied", "kimi-k2-varied", "glm4-moe-varied", "gpt-oss-varied"),
    *("qwen3-moe-fused", "deepseek-v3-disband", "glm4-moe-mtp"),
)


@pytest.fixture(scope="module")
def results(shared_output: list[str]) -> dict[str, dict[str, Any]]:
    """By case, what families_job.py found, and the ``line`` that the loader logged."""
    found: dict[str, dict[str, Any]] = {}
    line = None
    for text in shared_output:
        if "collab: read" in text:
            line = text
        elif text.startswith("FAMILY "):
            result = json.loads(text.removeprefix("FAMILY "))
            found[result["case"]] = result | {"line": line}
            line = None
    return found


def test_every_case_ran(results: dict[str, dict[str, Any]]) -> None:
    assert set(results) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_transformers(results: dict[str, dict[str, Any]], case: str) -> None:
    result = results[case]
    assert "error" not in result, result["error"]
    assert result["difference"] < 1e-3
    assert result["from_whole"] > 0.1, "pruning changed nothing, so nothing was compared"


@pytest.mark.parametrize("case", CASES)
def test_only_kept_experts_are_allocated_and_read(results: dict[str, dict[str, Any]], case: str) -> None:
    result = results[case]
    assert result["held"] == result["kept"]
    assert (len(result["kept"]) > 1) == case.endswith("-varied")
    read, stored, skipped = (float(n) for n in re.findall(r"([\d.]+) MB", result["line"]))
    assert stored == pytest.approx(result["stored"] / 1e6, abs=0.011)
    header = 0.05 * stored
    assert result["pruned_bytes"] / 1e6 <= skipped + 0.011 <= result["pruned_bytes"] / 1e6 + header
    assert read + skipped == pytest.approx(stored, abs=0.011)
