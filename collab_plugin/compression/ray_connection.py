"""A Ray cluster: connecting to it, and what a task that failed there says here."""

from __future__ import annotations

import logging
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError

TRIES = 10
"""How often a task is begun anew when its worker is lost."""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to ``address`` ("ray://head:10001", "head:6379", "auto", "local"); what was connected before stays
    so. CollabError without Ray, and for a cluster that is not there."""
    try:
        import ray
    except ImportError:
        raise CollabError("no Ray here: pip install 'collab-plugin[ray]', here and on the cluster") from None
    if ray.is_initialized():
        yield ray
        return
    _reach(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        line = str(error).strip().splitlines()[0][:200]
        raise CollabError(f"no Ray cluster at {address}: {line}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def result(ray: Any, ready: Any) -> Any:
    """What the finished task ``ready`` returned; CollabError where it raised one, or lost its worker too often."""
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CollabError):
            raise CollabError(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[0]
        raise CollabError(f"the cluster lost a task {TRIES + 1} times ({line}); run the same command again") from None


def as_they_end(ray: Any, tasks: Mapping[Any, int]) -> Generator[tuple[int, Any], None, None]:
    """(number, result) of ``tasks``, each when it ends; those that run when this is closed are cancelled. CollabError
    as `result` raises it."""
    running = dict(tasks)
    try:
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ready[0])
            yield number, result(ray, ready[0])
    finally:
        for left in running:
            ray.cancel(left, force=False)


def cores_of(ray: Any) -> int:
    """Cores of all nodes, at least one."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def check_cores(ray: Any, cores: int) -> None:
    """CollabError where no node has so many: Ray would wait for one for ever."""
    most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if cores > most:
        raise CollabError(f"no machine of the cluster has {cores} cores, the largest has {most}: lower `threads`")


def address_elsewhere(checkpoint: Checkpoint) -> str:
    """How workers of a cluster, in other folders, find the model."""
    path = checkpoint.path
    return str(path.resolve()) if checkpoint.address == str(path) else checkpoint.address


def _reach(address: str) -> None:
    """CollabError where nothing answers at ``address``: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise CollabError(f"no Ray cluster at {address}: {error}") from None
