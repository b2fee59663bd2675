"""The trained models, compressed, in a real Ollama: by Modelfile and over HTTP, and what they then compute."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from collab_ollama.compare.top_logprobs import TOP
from collab_ollama.server.runner_process import Runner
from real_ollama import MODELS, TRAINED, Ollama, Running, collab, free_port, running
from small_models.gguf_copies import write_typed

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.formats.ggml_types import TYPES

pytestmark = pytest.mark.slow
PROMPT = "The captain looked at the sea and"
PARAMETERS = ("num_thread=1", "num_predict=24", "temperature=0", "seed=7")
GREEDY = {"temperature": 0, "seed": 7, "num_predict": 32}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def disk(*folders: Path) -> int:
    """Bytes of all files below, each inode once."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = {path.stat().st_ino: path.stat().st_blocks * 512 for path in paths}
    return sum(files.values())


@pytest.fixture(scope="module", params=TRAINED)
def created(
    request: pytest.FixtureRequest,
    server: Running,
    artifacts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """The model over HTTP as NAME and from a Modelfile as NAME-file, on one server."""
    name, artifact = request.param, artifacts[request.param]
    options = ["--generation-config", MODELS / name, "--system", "Be brief."]
    for parameter in PARAMETERS:
        options += ["--parameter", parameter]
    before = disk(artifact.parent, server.models)
    done = collab(
        "ollama",
        "create",
        artifact,
        "--name",
        name,
        "--host",
        server.url,
        "--models",
        server.models,
        *options,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["digest"] == f"sha256:{sha256(artifact)}"
    assert result["linked"]
    # The files of the manifest, a few hundred bytes each, are all that is new on the disk.
    assert disk(artifact.parent, server.models) - before < 100_000
    build = tmp_path_factory.mktemp("build")
    done = collab("export", "ollama", artifact, "--name", f"{name}-file", "-o", build, *options)
    assert done.returncode == 0, done.stderr
    done = server.run("create", f"{name}-file", "-f", str(build / "Modelfile"))
    assert done.returncode == 0, done.stderr
    return name, artifact


def test_direct_is_the_same_model_without_any_copy(
    created: tuple[str, Path], ollama: Ollama, artifacts: dict[str, Path], server: Running, tmp_path: Path
) -> None:
    name, artifact = created
    options = ["--generation-config", MODELS / name, "--system", "Be brief.", "--direct"]
    for parameter in PARAMETERS:
        options += ["--parameter", parameter]
    reference = server.client.show(name)
    assert reference is not None
    with running(ollama, tmp_path) as fresh:
        place = ("--host", fresh.url, "--models", fresh.models)
        done = collab("ollama", "create", artifact, "--name", name, *place, *options, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["linked"]
        assert "validating GGUF" not in fresh.log.read_text()
        assert (fresh.blobs / f"sha256-{sha256(artifact)}").samefile(artifact)
        assert fresh.left_behind() == []
        again = collab("ollama", "create", artifact, "--name", "again", *place, *options, "--json")
        assert json.loads(again.stdout)["linked"], again.stderr
        fresh.client.delete("again")
        shown = fresh.client.show(name)
        assert shown is not None
        assert shown.blob == reference.blob
        assert sorted(shown.parameters.splitlines()) == sorted(reference.parameters.splitlines())
        assert (shown.system, shown.details, shown.capabilities, shown.model_info) == (
            reference.system, reference.details, reference.capabilities, reference.model_info,
        )  # fmt: skip
        request = {"prompt": PROMPT, "raw": True, "options": GREEDY, "logprobs": True, "top_logprobs": TOP}
        server.unload(name)
        replies = [place.client.generate({"model": name, **request}) for place in (server, fresh)]
        assert replies[0]["response"] == replies[1]["response"]
        assert replies[0]["logprobs"] == replies[1]["logprobs"]
        done = fresh.run("run", name, "--nowordwrap", PROMPT)
        assert done.returncode == 0, done.stderr
        fresh.client.delete(name)
        assert list(fresh.blobs.iterdir()) == []
    assert artifact.is_file()


def test_every_type_that_plan_offers_is_taken(qwen3moe: Path, server: Running, tmp_path: Path) -> None:
    names = [name for name, info in open_gguf(qwen3moe).tensors.items() if info.shape[-1] == 256]
    given = dict(zip(names, TYPES, strict=False))
    assert len(given) == len(TYPES)
    path = tmp_path / "all.gguf"
    write_typed(qwen3moe, path, given)
    done = collab("ollama", "create", path, "--name", "all", "--host", server.url, "--models", server.models)
    assert done.returncode == 0, done.stderr
    server.client.delete("all")


def test_one_file_on_the_disk(created: tuple[str, Path], server: Running) -> None:
    _, artifact = created
    blob = server.blobs / f"sha256-{sha256(artifact)}"
    assert blob.samefile(artifact)
    assert server.left_behind() == []


def test_both_ways_make_the_same_model(created: tuple[str, Path], server: Running) -> None:
    name, artifact = created
    http, file = (server.client.show(model) for model in (name, f"{name}-file"))
    assert http is not None
    assert file is not None
    assert http.blob == file.blob == f"sha256:{sha256(artifact)}"
    assert (http.system, http.template) == (file.system, file.template)
    assert http.system == "Be brief."
    settings = [dict(line.split(maxsplit=1) for line in shown.parameters.splitlines()) for shown in (http, file)]
    assert settings[0] == settings[1]
    assert settings[0] | {"num_ctx": "2048", "num_thread": "1", "temperature": "0", "seed": "7"} == settings[0]
    ends = {"tiny-qwen3moe": '"<|im_end|>"', "tiny-deepseek-v3": '"<｜end▁of▁sentence｜>"'}
    assert settings[0]["stop"] == ends[name]
    assert http.details["quantization_level"].endswith("bpw")
    assert "completion" in http.capabilities
    assert http.model_info[f"{http.details['family']}.expert_count"] == 32


@contextmanager
def same_llama_server(runner: Runner) -> Iterator[str]:
    """The llama-server of Ollama's runner, started directly with the same options."""
    port = free_port()
    command = list(runner.command)
    command[command.index("--port") + 1] = str(port)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            end = time.monotonic() + 60
            while not healthy(url):
                assert child.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            yield url
        finally:
            child.terminate()


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_same_as_llama_server_run_directly(created: tuple[str, Path], server: Running) -> None:
    name, _ = created
    request = {"model": name, "prompt": PROMPT, "raw": True, "options": GREEDY}
    server.unload(name)
    reply = server.client.generate({**request, "logprobs": True, "top_logprobs": TOP})
    assert len(reply["response"]) > 20
    with same_llama_server(*server.runners(name)) as url:
        body = {"prompt": PROMPT, "n_predict": 32, "temperature": 0, "seed": 7, "n_probs": TOP, "cache_prompt": True}
        direct = httpx.post(f"{url}/completion", json=body, timeout=60).json()
    assert reply["response"] == direct["content"]
    steps = [step for step in direct["completion_probabilities"] if step["token"]]
    assert len(reply["logprobs"]) >= 20
    for ours, theirs in zip(reply["logprobs"], steps, strict=False):
        mine = [(entry["token"], entry["logprob"]) for entry in ours["top_logprobs"]]
        assert mine == [(entry["token"], entry["logprob"]) for entry in theirs["top_logprobs"]]
        assert len(mine) == TOP


def test_ollama_run_and_the_api_say_the_same(created: tuple[str, Path], server: Running) -> None:
    name, _ = created
    for model in (name, f"{name}-file"):
        done = server.run("run", model, "--nowordwrap", PROMPT)
        assert done.returncode == 0, done.stderr
        reply = server.client.generate({"model": model, "prompt": PROMPT})
        assert done.stdout.strip() == reply["response"].strip()
        assert len(done.stdout.strip()) > 10
