"""A Ray cluster of two nodes on this machine, with a core each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import environ
from typing import Any


@contextmanager
def two_nodes() -> Iterator[Any]:
    """The cluster: ``address``, and what of `ray.cluster_utils.Cluster` adds and removes nodes."""
    # Ray runs its workers at a niceness of 15: beside other tests they would wait for minutes.
    environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
