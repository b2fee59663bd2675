"""`probe --cluster`: the numbers of one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from small_models.two_nodes import two_nodes

import collab_plugin as cp
from collab_plugin.cli.main import main
from collab_plugin.engines.disturbance import Disturbance
from collab_plugin.engines.engine import Windows
from collab_plugin.errors import CollabError
from collab_plugin.planning.measure.probe_on_cluster import ClusterProbe, disturbed_on
from collab_plugin.progress import untold

pytest.importorskip("ray", reason="Ray is not installed: pip install 'collab-plugin[ray]'")
pytestmark = [pytest.mark.native, pytest.mark.slow]
CTX = 64


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stats(qwen3moe: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stats") / "stats.gguf"
    cp.calibrate(qwen3moe, texts=text, ctx=CTX, chunks=8, out=out, threads=1)
    return out


def test_the_same_document(qwen3moe: Path, text: Path, stats: Path, nodes: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    tokens = 100 * CTX  # two windows a probe, and several rounds
    found = cp.probe(qwen3moe, stats=stats, texts=text, out=here, tokens=tokens, allow_few_tokens=True, threads=1)
    assert found.windows > 1
    assert found.prunings
    arguments = ["probe", str(qwen3moe), "--stats", str(stats), "--text", str(text), "--tokens", str(tokens)]
    done = CliRunner().invoke(
        main, [*arguments, "--allow-few-tokens", "--threads", "1", "--cluster", nodes.address, "-o", str(there)]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(there.read_text()) == json.loads(here.read_text())


def test_mistakes_are_one_line(qwen3moe: Path, text: Path, stats: Path, nodes: Any) -> None:
    with pytest.raises(CollabError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        cp.probe(qwen3moe, stats=stats, texts=text, allow_few_tokens=True, threads=1, cluster="127.0.0.1:1")
    with pytest.raises(
        CollabError, match=r"no machine of the cluster has 99 cores, the largest has \d+: lower `threads`"
    ):
        cp.probe(qwen3moe, stats=stats, texts=text, allow_few_tokens=True, threads=99, cluster=nodes.address)
    job = ClusterProbe(
        LlamaCppEngine(), qwen3moe.with_name("gone.gguf"), (Disturbance(),), {}, Windows((text,), CTX, 1), 1, 1
    )
    with pytest.raises(CollabError, match=r"gone.gguf is not there on .*; workers read the model and the texts"):
        disturbed_on(nodes.address, job, untold)
