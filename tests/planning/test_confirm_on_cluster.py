"""`plan --confirm --cluster`: the figures of one machine, also where a node is lost while it measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_models.model_bench import Bench
from small_models.two_nodes import two_nodes

import collab_plugin as cp
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.user_folders import cache_path
from collab_plugin.progress import Progress

pytest.importorskip("ray", reason="Ray is not installed: pip install 'collab-plugin[ray]'")
pytestmark = [pytest.mark.native, pytest.mark.slow]
ASKED: dict[str, Any] = {"budget": "6bpw", "types": "Q4_K,Q6_K", "confirm": 3, "ctx": 64, "chunks": 2, "threads": 1}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


def test_the_same_plan(runnable: Bench, text: Path, nodes: Any, tmp_path: Path) -> None:
    """First by the command, on two nodes; then one of them is killed when the first candidate is measured."""
    here = tmp_path / "here.json"
    cp.write_plan(here, cp.plan(runnable.path, stats=runnable.stats_path, texts=text, **ASKED))
    wanted = json.loads(here.read_text())
    assert sum(point["measured_kld"] is not None for point in wanted["considered"]) == 3

    out = tmp_path / "there.json"
    options = [part for name, value in ASKED.items() for part in (f"--{name}", str(value))]
    command = ["plan", str(runnable.path), "--stats", str(runnable.stats_path), "--text", str(text), *options]
    done = CliRunner().invoke(main, [*command, "--cluster", nodes.address, "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text()) == wanted

    lost: list[float] = []

    def lose(event: Progress) -> None:
        if event.unit == "candidates" and 0 < event.done < 3 and not lost:
            lost.append(event.done)
            nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)

    found = cp.plan(runnable.path, stats=runnable.stats_path, texts=text, cluster=nodes.address, progress=lose, **ASKED)
    cp.write_plan(out, found)
    assert lost
    assert json.loads(out.read_text()) == wanted
    assert list((cache_path() / "scratch").glob("*/*")) == []


def test_mistakes_are_one_line(runnable: Bench, text: Path, nodes: Any) -> None:
    def plan(**options: Any) -> None:
        cp.plan(runnable.path, stats=runnable.stats_path, texts=text, **{**ASKED, **options})

    with pytest.raises(CollabError, match="`cluster` measures candidates: give `confirm` too"):
        plan(cluster=nodes.address, confirm=0)
    with pytest.raises(CollabError, match="workers of a `cluster` take their own"):
        plan(cluster=nodes.address, kernels=runnable.kernels)
    with pytest.raises(CollabError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        plan(cluster="127.0.0.1:1")
    with pytest.raises(CollabError, match=r"no machine of the cluster has 99 cores"):
        plan(cluster=nodes.address, threads=99)
