"""A real vLLM: the environment that tests/native/vllm_env.sh made, or the user's own Python in COLLAB_VLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODELS = ROOT / "tests" / "models"
OTHER = ROOT / "benchmarks" / "models" / "tiny-qwen3moe-seed1"
TRAINED = ("tiny-qwen3moe", "tiny-deepseek-v3")
START = 400.0
"""Seconds that a server may take; a compiled start takes about 80 on two idle cores."""


@dataclass(frozen=True)
class Vllm:
    """``python`` of an environment with vLLM; ``site`` holds collab-plugin, installed as a wheel; ``home`` is ours."""

    python: Path
    site: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        ours = {
            "PYTHONPATH": os.pathsep.join(map(str, (self.site, HERE, HERE.parent))),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Kept, as vLLM's own is: compiled code is found by everything that decides it, the plan among it.
            "VLLM_CACHE_ROOT": str(cache / "collab-plugin" / "vllm" / "compiled"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "collab-plugin" / "vllm" / "inductor"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        llama_cpp = importlib.util.find_spec("llama_cpp")
        if llama_cpp is not None and llama_cpp.origin is not None:  # vLLM's environment has none
            ours["COLLAB_GGML"] = str(Path(llama_cpp.origin).parent / "lib")
        return os.environ | ours

    def run(self, *command: str | Path, timeout: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run this Python with ``command``."""
        return subprocess.run(
            [self.python, *command],
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip

    def serve_command(self, model: Path, options: dict[str, Any], *more: str) -> list[str | Path]:
        """The real `vllm serve MODEL --load-format collab`."""
        return [
            self.python.parent / "vllm", "serve", model, "--load-format", "collab",
            "--model-loader-extra-config", json.dumps(options), "--dtype", "float32", "--max-model-len", "512",
            "--max-num-seqs", "8", "--max-logprobs", "-1", "--block-size", "32", *more,
        ]  # fmt: skip

    @contextmanager
    def serving(self, model: Path, options: dict[str, Any], *more: str) -> Iterator[Server]:
        """`vllm serve` on a free port while the context lasts."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = self.home / f"serve-{model.name}.log"
        where = ("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model")
        with log.open("w") as out:
            process = subprocess.Popen(
                self.serve_command(model, options, *where, *more),
                env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", log, process)
        try:
            server.wait()
            yield server
        finally:
            server.stop()


@dataclass(frozen=True)
class Server:
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise AssertionError(f"no server after {START} s: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def complete(self, tokens: Sequence[int], **more: Any) -> dict[str, Any]:
        """POST /v1/completions for a prompt of token ids."""
        body = {"model": "model", "prompt": list(tokens), "temperature": 0, **more}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def prompt_logprobs(self, tokens: Sequence[int], count: int) -> list[dict[int, float]]:
        """By position from the second: log p by token, of the ``count`` likeliest and the prompt's own."""
        found = self.complete(tokens, max_tokens=1, prompt_logprobs=count)["choices"][0]["prompt_logprobs"]
        return [{int(token): entry["logprob"] for token, entry in at.items()} for at in found[1:]]
