"""Start and end the server of completions_server.py."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from collab_llamacpp.calibrate.job_types import ServeJob
from collab_llamacpp.calibrate.llamacpp_child import llamacpp_program
from collab_plugin.engines.child_process import Child, start
from collab_plugin.engines.results import Served
from collab_plugin.errors import CollabError


@contextmanager
def serve(model: Path, *, ctx: int, threads: int, start_limit: float) -> Iterator[Served]:
    """Serve ``model`` on a free port of loopback until the with statement ends.

    Raises CollabError when it is not there within ``start_limit`` seconds, or when its end is what made the
    body fail.
    """
    if find_spec("aiohttp") is None:
        raise CollabError("serving needs aiohttp: pip install 'collab-plugin[llamacpp,tasks]'")
    job = ServeJob(str(model), threads, ctx, secrets.token_urlsafe(24))
    with start(llamacpp_program("collab_llamacpp.serve.completions_server"), job) as child:
        port = _port(child, model, start_limit)
        try:
            yield Served(f"http://127.0.0.1:{port}", job.token, ctx)
        except Exception as error:
            # A connection that broke is seen here a moment before its cause.
            end = child.ended(0.5)
            if end is None:
                raise
            raise end.failure(f"serve {model}") from error


def _port(child: Child, model: Path, limit: float) -> int:
    try:
        line = child.hear(limit)
    except TimeoutError:
        raise CollabError(f"{model} was not loaded and served within {limit:.0f} seconds") from None
    if line is None:
        raise child.wait().failure(f"serve {model}")
    return int(line["port"])
