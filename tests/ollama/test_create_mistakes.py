"""What goes wrong while a model is created: one line, exit code 2, nothing left behind, and it can be repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from real_ollama import TOOL, Ollama, Running, collab, free_port, interruptible, mistake, running
from small_models.gguf_copies import write_typed
from small_models.tiny_moe import write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.copy_plan import copy_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a million random weights, as `compress` writes it."""
    out = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    source = open_gguf(qwen3moe)
    compress(source, copy_plan(source), None, out, kernels=None, threads=1, report=lambda done, total=None: None)
    return out


def create(server: Running, artifact: Path, *options: object, name: str = "tiny") -> subprocess.CompletedProcess[str]:
    return collab(
        "ollama", "create", artifact, "--name", name, "--host", server.url, "--models", server.models, *options
    )  # fmt: skip


def test_no_server(tiny: Path) -> None:
    done = collab("ollama", "create", tiny, "--name", "tiny", "--host", f"127.0.0.1:{free_port()}")
    assert "no Ollama server at http://127.0.0.1:" in mistake(done)


def test_old_version(tiny: Path, ollama: Ollama, tmp_path: Path) -> None:
    old = ollama.program.with_name("ollama-0.29.0")
    if not old.is_file():
        pytest.skip(f"not run: no {old}")
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | ollama.environment | {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(tmp_path)}
    with subprocess.Popen([old, "serve"], env=environment, stderr=subprocess.DEVNULL) as child:
        try:
            wait_for(url)
            words = mistake(collab("ollama", "create", tiny, "--name", "tiny", "--host", url, "--models", tmp_path))
        finally:
            child.terminate()
    assert f"Ollama 0.29.0 at {url} is too old" in words


def wait_for(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.parametrize("name", ["a b", "UPPER/../x", "-x", "a:b:c", "a@b", "", "x" * 81])
def test_wrong_name(name: str, tiny: Path, server: Running) -> None:
    assert "is no name for a model in Ollama" in mistake(create(server, tiny, name=name))
    # And Ollama would have said so too.
    reply = httpx.post(f"{server.url}/api/create", json={"model": name, "from": "y"})
    assert reply.status_code == 400, reply.text


def test_file_that_vanished(tiny: Path, server: Running, tmp_path: Path) -> None:
    assert "nowhere.gguf" in mistake(create(server, tmp_path / "nowhere.gguf"))


def test_existing_name_is_kept(tiny: Path, server: Running) -> None:
    assert create(server, tiny, name="twice").returncode == 0
    assert "tiny" not in mistake(create(server, tiny, "--num-ctx", "64", name="twice"))
    shown = server.client.show("twice")
    assert shown is not None
    assert "512" in shown.parameters
    assert create(server, tiny, "--num-ctx", "64", "--replace", name="twice").returncode == 0
    shown = server.client.show("twice")
    assert shown is not None
    assert "512" not in shown.parameters
    server.client.delete("twice")
    assert server.left_behind() == []
    assert tiny.is_file()


def test_more_context_than_the_model_has(tiny: Path, server: Running) -> None:
    assert "more than the model's 512 tokens" in mistake(create(server, tiny, "--num-ctx", "4096"))


def test_type_that_ollama_refuses(qwen3moe: Path, ollama: Ollama, tmp_path: Path) -> None:
    path = tmp_path / "ternary.gguf"
    write_typed(qwen3moe, path, {"blk.0.ffn_up_exps.weight": "TQ1_0"})
    # A server of its own: Ollama's own create leaves the file that it refused.
    with running(ollama, tmp_path) as server:
        words = mistake(create(server, path))
        assert "blk.0.ffn_up_exps.weight has type TQ1_0, which ollama does not load" in words
        assert "plan again for ollama" in words
        # And it is refused indeed: the rule is Ollama's, not ours.
        (tmp_path / "Modelfile").write_text(f"FROM {path}\n")
        done = server.run("create", "ternary", "-f", str(tmp_path / "Modelfile"))
        assert done.returncode != 0
        assert "size overflow" in done.stderr


def test_direct_into_another_folder(tiny: Path, server: Running, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    command = ("ollama", "create", tiny, "--name", "x", "--direct", "--host", server.url, "--models")
    assert f"{tmp_path} is not the folder of the server" in mistake(collab(*command, tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert "cannot be linked" in mistake(collab(*command, tmp_path / "nowhere"))


def test_without_the_servers_folder_the_file_is_sent(tiny: Path, server: Running, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    place = ("--host", server.url, "--models", tmp_path)
    done = collab("ollama", "create", tiny, "--name", "sent", *place, "--json")
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)["linked"]
    assert list((tmp_path / "blobs").iterdir()) == []
    assert tiny.stat().st_nlink == 1
    server.client.delete("sent")
    assert server.left_behind() == []


# In the middle ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """A llama-quantize that waits: ``reached`` appears when Ollama has started it, it goes on at ``open``."""

    reached: Path
    open: Path

    def wait(self, child: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 60
        while not self.reached.exists():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)


@contextmanager
def gated(ollama: Ollama, folder: Path) -> Iterator[tuple[Ollama, Gate]]:
    """The same Ollama, whose llama-quantize is a script that waits and then runs the real one."""
    real = ollama.program.parent.parent / "lib" / "ollama"
    if not (real / "llama-quantize").is_file():
        pytest.skip(f"not run: {real} has no llama-quantize to put a gate before")
    gate = Gate(folder / "reached", folder / "open")
    prefix = folder / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib" / "ollama").mkdir(parents=True)
    program = prefix / "bin" / "ollama"
    try:
        os.link(ollama.program, program)  # a symbolic link would lead to the real folder
    except OSError:
        shutil.copy(ollama.program, program)
    for path in real.iterdir():
        (prefix / "lib" / "ollama" / path.name).symlink_to(path)
    script = prefix / "lib" / "ollama" / "llama-quantize"
    script.unlink()
    script.write_text(
        f"#!/bin/sh\ntouch '{gate.reached}'\nwhile [ ! -e '{gate.open}' ]; do sleep 0.05; done\n"
        f"exec '{real / 'llama-quantize'}' \"$@\"\n"
    )
    script.chmod(0o755)
    try:
        yield Ollama(program, ollama.home), gate
    finally:
        gate.open.touch()  # whatever waits may end


Middle = Callable[[Running, Gate, "subprocess.Popen[str]"], None]


def in_the_middle(server: Running, gate: Gate, artifact: Path, act: Middle) -> subprocess.CompletedProcess[str]:
    """Start a create, do ``act`` while Ollama's llama-quantize waits, and return how it ended."""
    command = (
        *TOOL,
        "ollama",
        "create",
        str(artifact),
        "--name",
        "tiny",
        "--host",
        server.url,
        "--models",
        str(server.models),
    )
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as child:
        gate.wait(child)
        act(server, gate, child)
        out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes at ``folder``; skips where none can be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"not run: no file system can be mounted here ({done.stderr.decode().strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_too_small(ollama: Ollama, tiny: Path, tmp_path: Path) -> None:
    size = tiny.stat().st_size
    with small_disk(tmp_path / "disk", int(2.5 * size)), running(ollama, tmp_path / "disk") as server:
        words = mistake(create(server, tiny))  # on another disk: it would be sent, so three times its size
        assert f"Ollama needs {3 * size:,} bytes in {server.models}" in words
        assert server.left_behind() == []
    with small_disk(tmp_path / "larger", 4 * size), running(ollama, tmp_path / "larger") as server:
        done = create(server, tiny)
        assert done.returncode == 0, done.stderr
        assert "a file of its own" in done.stdout
        assert server.left_behind() == []


def test_disk_full_in_the_middle(ollama: Ollama, tiny: Path, tmp_path: Path) -> None:
    size = tiny.stat().st_size
    filler = tmp_path / "disk" / "filler"

    def fill(server: Running, gate: Gate, child: subprocess.Popen[str]) -> None:
        left = shutil.disk_usage(filler.parent).free - size // 2
        filler.write_bytes(b"\0" * left)
        gate.open.touch()

    with (
        small_disk(tmp_path / "disk", 5 * size),
        gated(ollama, tmp_path) as (slow, gate),
        running(slow, tmp_path / "disk") as server,
    ):
        assert "Ollama did not create the model" in mistake(in_the_middle(server, gate, tiny, fill))
        assert server.left_behind() == []
        filler.unlink()
        done = create(server, tiny)
        assert done.returncode == 0, done.stderr
        assert server.left_behind() == []


def test_server_killed_in_the_middle(ollama: Ollama, tiny: Path, tmp_path: Path) -> None:
    def kill(server: Running, gate: Gate, child: subprocess.Popen[str]) -> None:
        os.kill(server.pid, signal.SIGKILL)

    with gated(ollama, tmp_path) as (slow, gate):
        with running(slow, tmp_path) as server:
            words = mistake(in_the_middle(server, gate, tiny, kill))
            assert f"the Ollama server at {server.url} broke off" in words
        assert server.left_behind() == []
        gate.open.touch()
        with running(slow, tmp_path) as server:
            done = create(server, tiny)
            assert done.returncode == 0, done.stderr
            assert server.left_behind() == []


def test_ctrl_c_while_the_file_is_sent(ollama: Ollama, tmp_path: Path) -> None:
    """More bytes than the sockets hold, and a server that stops as soon as it has some of them."""
    large = write_qwen3moe(tmp_path / "large.gguf", experts=24)
    with running(ollama, tmp_path) as server:
        place = ("--host", server.url, "--models", str(tmp_path / "nowhere"))
        command = (*TOOL, "ollama", "create", str(large), "--name", "large", *place)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
        ) as child:
            end = time.monotonic() + 60
            while not (server.blobs.is_dir() and any(server.blobs.iterdir())):
                assert time.monotonic() < end
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
            os.kill(server.pid, signal.SIGCONT)
        done = subprocess.CompletedProcess(command, child.returncode, out, err)
        assert "interrupted" in mistake(done)
        assert "creating" not in err
        end = time.monotonic() + 10
        while server.left_behind():
            assert time.monotonic() < end
            time.sleep(0.1)


def test_ctrl_c_in_the_middle(ollama: Ollama, tiny: Path, tmp_path: Path) -> None:
    def interrupt(server: Running, gate: Gate, child: subprocess.Popen[str]) -> None:
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert child.poll() is None, "Ollama cannot be stopped, so its end is awaited"
        gate.open.touch()

    with gated(ollama, tmp_path) as (slow, gate), running(slow, tmp_path) as server:
        assert "interrupted" in mistake(in_the_middle(server, gate, tiny, interrupt))
        assert server.client.show("tiny") is None
        assert server.left_behind() == []
        done = create(server, tiny, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["linked"]
    assert tiny.is_file()
