"""A real Ollama: installed by tests/native/ollama.sh, or the user's own in COLLAB_OLLAMA."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from collab_ollama.server.client import Client
from collab_ollama.server.runner_process import Runner, runners_of
from collab_ollama.server.server_process import serving

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "models"
TRAINED = ("tiny-qwen3moe", "tiny-deepseek-v3")


@dataclass(frozen=True)
class Ollama:
    """``program`` is bin/ollama; ``home`` a folder of ours, where it keeps its keys."""

    program: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "OLLAMA_NO_CLOUD": "1", "OLLAMA_NOHISTORY": "1", "OLLAMA_NUM_PARALLEL": "1"}


@dataclass(frozen=True)
class Running:
    """A server with its own models folder; ``pid`` of `ollama serve`."""

    ollama: Ollama
    url: str
    models: Path
    pid: int
    client: Client
    log: Path

    @property
    def blobs(self) -> Path:
        return self.models / "blobs"

    def left_behind(self) -> list[str]:
        """Files in the models folder that no model accounts for."""
        manifests = "".join(p.read_text() for p in (self.models / "manifests").glob("*/*/*/*") if p.is_file())
        return [p.name for p in self.blobs.iterdir() if p.name.replace("-", ":") not in manifests]

    def runners(self, name: str) -> list[Runner]:
        """The running llama-servers of ``name``."""
        shown = self.client.show(name)
        assert shown is not None
        assert shown.blob is not None
        blob = shown.blob.replace(":", "-")
        return [runner for runner in runners_of(self.pid) if blob in (runner.option("--model") or "")]

    def unload(self, name: str) -> None:
        """End the runner of ``name``: with a prompt in its cache, the last bits may differ."""
        self.client.generate({"model": name, "keep_alive": 0})
        end = time.monotonic() + 30
        while self.runners(name):
            assert time.monotonic() < end
            time.sleep(0.05)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The ollama program as a client of this server."""
        return subprocess.run(
            [self.ollama.program, *arguments],
            env=os.environ | self.ollama.environment | {"OLLAMA_HOST": self.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def native(*options: str) -> Path:
    """The folder that tests/native/ollama.sh made; skips the test when there is none."""
    script = ROOT / "tests" / "native" / "ollama.sh"
    command = [script, sys.executable, version("llama-cpp-python"), "--no-build", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not run: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(ollama: Ollama, folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A server on a free port of this machine with the models folder ``folder``/models."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    url, log = f"http://127.0.0.1:{free_port()}", folder / "ollama.log"
    environment = {**ollama.environment, **(variables or {})}
    with serving(ollama.program, url, models, environment, log) as server:
        client = Client(url)
        try:
            yield Running(ollama, url, models, server.process.pid, client, log)
        finally:
            client.close()


TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")


def collab(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line of collab-plugin."""
    return subprocess.run(
        [*TOOL, *map(str, arguments)],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def interruptible() -> None:
    """For ``preexec_fn``: Python ignores SIGINT when its parent did, as shells do for background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


PROGRESS = ("hashing", "sending", "creating", "loading", "asking", "interrupted; waiting", "measuring", "compressing")


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command printed."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(PROGRESS)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    assert done.stdout == ""
    return lines[0]
