"""Start and end the server of completions_server.py."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from collab_llamacpp.calibrate.child import failure
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
    job = {"do": "serve", "model": str(model), "ctx": ctx, "threads": threads, "token": secrets.token_urlsafe(24)}
    with tempfile.TemporaryDirectory(prefix="collab-") as name:
        folder = Path(name)
        (folder / "job.json").touch(mode=0o600)
        (folder / "job.json").write_text(json.dumps(job))
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "collab_llamacpp.serve.completions_server", str(folder)],
                stdin=subprocess.PIPE,  # its end tells the child that we are gone, however we went
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
            try:
                port = _port(child, folder, job, start_limit)
                yield Served(f"http://127.0.0.1:{port}", str(job["token"]), ctx)
            except Exception as error:
                code = _ended(child)
                if code is None or isinstance(error, _StartError):
                    raise
                raise failure(code, folder, job) from error
            finally:
                child.kill()
                child.wait()
                for pipe in (child.stdin, child.stdout):
                    assert pipe is not None
                    pipe.close()


class _StartError(CollabError):
    """The server did not come up; told already."""


def _port(child: subprocess.Popen[bytes], folder: Path, job: dict[str, Any], limit: float) -> int:
    lines: queue.Queue[bytes] = queue.Queue()
    assert child.stdout is not None
    stdout = child.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=limit)
    except queue.Empty:
        raise _StartError(f"{job['model']} was not loaded and served within {limit:.0f} seconds") from None
    if not line:
        raise failure(child.wait(), folder, job)
    return int(json.loads(line)["port"])


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a child that ended by itself, None while it runs."""
    try:
        # A connection that broke is seen here a moment before its cause.
        return child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None
