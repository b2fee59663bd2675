"""Sensitivity documents: round trip, schema, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from collab_plugin.errors import CollabError
from collab_plugin.planning.sources import SensitivitySource
from collab_plugin.stats.sensitivity import GroupProbe, PruningProbe, Sensitivity, TogetherProbe
from collab_plugin.stats.sensitivity_file import read_sensitivity, sensitivity_schema, write_sensitivity

PUBLISHED = Path(__file__).parents[2] / "docs" / "formats" / "sensitivity.schema.json"
MEASURED = Sensitivity(
    model_id="sha256:1",
    stats_sha256="2",
    texts=("a.txt", "ü b.txt"),
    text_sha256="3",
    ctx=512,
    windows=4,
    level_windows=8,
    tokens=1020,
    tokens_run=86016,
    engine="llama-cpp-python 0.3.36",
    groups=(
        GroupProbe(("blk.1.attn_q.weight", "blk.2.attn_q.weight"), 0.123456789, 1.5e-7, 3e-9),
        GroupProbe(("blk.1.attn_q.weight",), 0.1, -1e-12, 0.0),
    ),
    prunings=(PruningProbe("freq-score alpha=0.5 groups=none", 6, 2, 0.25, 0.0125),),
    together=(
        TogetherProbe(
            {"blk.1.attn_q.weight": 0.01, "blk.2.attn_q.weight": 0.3}, {"blk.1.attn_q.weight": 0.0001}, 0.05, 0.002
        ),
    ),
)


@pytest.mark.parametrize("document", [MEASURED, dataclasses.replace(MEASURED, groups=(), prunings=(), together=())])
def test_round_trip(document: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    write_sensitivity(path, document)
    assert read_sensitivity(path) == document
    jsonschema.validate(json.loads(path.read_text()), json.loads(PUBLISHED.read_text()))


def test_schema_is_the_published_one() -> None:
    assert json.loads(PUBLISHED.read_text()) == sensitivity_schema()


def test_in_memory_it_hashes_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    write_sensitivity(path, MEASURED)
    read, made = SensitivitySource.read(path), SensitivitySource.of(MEASURED)
    assert (read.sensitivity, read.sha256, read.file) == (made.sensitivity, made.sha256, "sensitivity.json")
    assert made.file == ""


def _with(path: Path, *at: str | int, value: object) -> Path:
    """The document with the member ``at`` changed, not validated."""
    write_sensitivity(path, MEASURED)
    data = json.loads(path.read_text())
    inner: Any = data
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("format",), "collab-plugin plan", "is not a sensitivity file"),
        (("version",), 1, "has sensitivity version 1"),
        (("surprise",), 1, "unknown member 'surprise'"),
        (("ctx",), "512", r"\$\.ctx"),
        (("ctx",), 0, r"\$\.ctx is 0"),
        (("windows",), -1, r"\$\.windows is -1"),
        (("level_windows",), 0, r"\$\.level_windows is 0"),
        (("together", 0, "kld"), 1e7, r"\$\.together\[0\]\.kld is 1"),
        (("together", 0, "errors", "blk.1.attn_q.weight"), -0.1, r"\$\.together\[0\]\.errors\.blk\.1\.attn_q\.weight"),
        (("groups", 0, "kld"), float("nan"), r"\$\.groups\[0\]\.kld"),
        (("prunings", 0, "kld"), float("inf"), r"\$\.prunings\[0\]\.kld"),
        # Their ratio is a weight: it would be infinite in the knapsack.
        (("groups", 1, "error"), 1e-300, r"\$\.groups\[1\]\.error is 1e-300, which nothing measures"),
        (("groups", 1, "error"), -0.1, r"\$\.groups\[1\]\.error is -0\.1, which nothing measures"),
        (("groups", 1, "kld"), 1e300, r"\$\.groups\[1\]\.kld is 1e\+300, which nothing measures"),
        (("prunings", 0, "stderr"), -1e7, r"\$\.prunings\[0\]\.stderr is -10000000\.0, which nothing measures"),
    ],
)
def test_what_is_refused(at: tuple[str | int, ...], value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match=message) as error:
        read_sensitivity(_with(tmp_path / "sensitivity.json", *at, value=value))
    assert "\n" not in str(error.value)
    assert "sensitivity.json" in str(error.value)
