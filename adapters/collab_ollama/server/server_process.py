"""An `ollama serve` of our own: started with an environment, waited for, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from collab_ollama.server.client import Client
from collab_plugin.errors import CollabError

START_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Server:
    """A running server; ``log`` is the file with what it and its runners print."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def last_words(self) -> str:
        """The last line of the log that says something."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no message"


def free_url() -> str:
    """An address on loopback with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def serving(program: Path, url: str, models: Path | None, variables: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Run a server at ``url`` until the block is left; CollabError when it does not come up.

    ``variables`` go into its environment, and so into that of every llama-server that it starts.
    """
    client = Client(url)
    if client.answers():
        raise CollabError(
            f"a server runs at {url} already, and its placement cannot be changed; stop it, or give --host"
        )
    environment = os.environ | {"OLLAMA_HOST": urlsplit(url).netloc} | dict(variables)
    if models is not None:
        environment["OLLAMA_MODELS"] = str(models.resolve())
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, "serve"], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(process, url, log)
    try:
        _wait(server, client)
        client.version()
        yield server
    finally:
        client.close()
        stop(process)


def _wait(server: Server, client: Client) -> None:
    end = time.monotonic() + START_SECONDS
    while not client.answers():
        if server.process.poll() is not None:
            raise CollabError(f"ollama serve ended at once: {server.last_words()}")
        if time.monotonic() > end:
            raise CollabError(
                f"ollama serve does not answer at {server.url} after {START_SECONDS:.0f} s; see {server.log}"
            )
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, which ends its runners too; kill it when it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
