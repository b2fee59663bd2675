"""`compress --cluster`: the same bytes as one machine, whatever happens to a worker."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models import slow_disk
from small_models.hand_made_plans import pruned, typed_plan
from small_models.two_nodes import two_nodes

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.engines.engine import Windows
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.progress import untold
from collab_plugin.repair.samples import read_samples

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'collab-plugin[ray]'")
pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


def test_a_node_that_is_lost_in_the_middle(qwen3moe: Path, nodes: Any, tmp_path: Path) -> None:
    """First by the command, on two nodes; then one of them is killed while it works."""
    checkpoint = open_gguf(qwen3moe)
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), (3, 0, 2))
    write_plan(tmp_path / "plan.json", plan)
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    compress(checkpoint, plan, None, whole, kernels=GgmlKernels(), threads=1, report=untold)
    command = ["compress", str(qwen3moe), "--plan", str(tmp_path / "plan.json"), "--cluster", nodes.address]
    done = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "first.gguf")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "first.gguf").read_bytes() == whole.read_bytes()

    # Workers have no tests in their path.
    ray.cloudpickle.register_pickle_by_value(slow_disk)
    lost: list[float] = []

    def lose(values: float, total: float | None = None) -> None:
        if values and not lost:
            lost.append(values)
            nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)

    workers = RayCluster(nodes.address, partial(slow_disk.open_slow, qwen3moe, 1e9, 0.05), GgmlKernels, lambda: None)
    made = compress(checkpoint, plan, None, out, kernels=None, threads=1, report=lose, cluster=workers)
    assert lost
    assert lost[0] < sum(info.n_elements for info in checkpoint.tensors.values()) / 2
    assert made.resumed_tiles == 0
    assert out.read_bytes() == whole.read_bytes()


def test_layers_that_are_repaired(qwen3moe: Path, text: Path, nodes: Any, tmp_path: Path) -> None:
    """Each is one task; and no task takes more cores than a machine has."""
    checkpoint, samples = open_gguf(qwen3moe), tmp_path / "samples.gguf"
    LlamaCppEngine().sample(qwen3moe, Windows((text,), 64, 4), out=samples, threads=1, progress=untold)
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q2_K" if info.by_expert else "F32"), (3, 0, 2))
    workers = RayCluster(nodes.address, partial(open_gguf, qwen3moe), GgmlKernels, partial(read_samples, samples))

    def made(cluster: RayCluster | None, threads: int = 1) -> bytes:
        out = tmp_path / "out.gguf"
        compress(
            checkpoint,
            plan,
            None,
            out,
            kernels=GgmlKernels(),
            threads=threads,
            report=untold,
            samples=read_samples(samples),
            cluster=cluster,
        )
        return out.read_bytes()

    assert made(workers) == made(None)
    with pytest.raises(CollabError, match="no machine of the cluster has 99 cores"):
        made(workers, 99)


def test_mistakes_are_one_line(qwen3moe: Path, nodes: Any, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    plan = typed_plan(checkpoint, lambda info: "Q8_0")

    def failing() -> Any:
        raise CollabError("the model is not here")

    workers = RayCluster(nodes.address, failing, GgmlKernels, lambda: None)
    with pytest.raises(CollabError, match="the model is not here"):
        compress(checkpoint, plan, None, tmp_path / "o.gguf", kernels=None, threads=1, report=untold, cluster=workers)
    ray.shutdown()
    nowhere = RayCluster("127.0.0.1:1", failing, GgmlKernels, lambda: None)
    with pytest.raises(CollabError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        compress(checkpoint, plan, None, tmp_path / "o.gguf", kernels=None, threads=1, report=untold, cluster=nowhere)
