"""One placement document that `place` wrote, carried out by `run`, by Ollama and by vLLM, and verified on each; and
what is lost when a server is killed while experts move."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from collab_ollama.server.own_server import create_model, own_server
from collab_ollama.server.placement_environment import override_of
from collab_ollama.server.server_process import free_url
from real_vllm import MODELS, ROOT, Server, Vllm
from test_vllm_serve import VOCABULARY, dense, metrics
from trained_plans import pruning_plan

import collab_plugin as cp
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.packed_logits import unpack_logits
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.tensor_names import Role
from collab_plugin.placement.placement import Placement
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold

pytestmark = pytest.mark.slow

MODEL = MODELS / "tiny-qwen3moe"
TEXT = ROOT / "tests" / "texts" / "english.validation.txt"
TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")
CTX, WINDOWS = 96, 2


@dataclass(frozen=True)
class Placed:
    """An artifact, the plan that made it, and the document that `place` wrote for it."""

    folder: Path
    artifact: Path
    plan: Path
    document: Path
    placement: Placement

    @property
    def hashes(self) -> list[str]:
        return [file_sha256(path) for path in (self.artifact, self.plan, self.document)]


def collab(*arguments: object, **environment: str) -> str:
    """What the command line of collab-plugin prints."""
    done = subprocess.run(
        [*TOOL, *map(str, arguments)], env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Placed:
    """24 of 32 experts, `down` at a type that is slower a byte than that of the others; a third of the experts' bytes
    on the device, and a policy that moves them."""
    folder = tmp_path_factory.mktemp("placed")
    plan_path, artifact, document = (folder / name for name in ("plan.json", "out.gguf", "placement.json"))
    checkpoint = open_checkpoint(MODEL)
    plan = pruning_plan(MODEL, plan_path, keep=24, used=3)
    kinds = {
        name: "Q2_K" if "down" in name else "Q8_0" for name, i in checkpoint.tensors.items() if i.role == Role.EXPERT
    }
    tensors = {n: TensorPlan(k, tensor_bytes(k, checkpoint.tensors[n].shape), 0.0) for n, k in kinds.items()}
    plan = dataclasses.replace(plan, tensors={**plan.tensors, **tensors})
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    write_plan(plan_path, plan)
    compress(checkpoint, plan, None, artifact, kernels=GgmlKernels(), threads=1, report=untold)
    whole = cp.place(artifact, tiers=["gpu=1TB"], threads=1).contents[0]
    room = whole.always + whole.tensor_bytes // 3
    collab(
        *("place", artifact, "--tier", f"gpu={room}@1008GB", "--tier", "ram=8GB", "--measure", "--threads", 1),
        *("--policy", "lfu-decay", "-o", document),
    )  # fmt: skip
    return Placed(folder, artifact, plan_path, document, cp.read_placement(document))


def test_the_document_divides_tensors_and_experts(placed: Placed) -> None:
    tensors, experts = placed.placement.tensors, placed.placement.experts
    assert not tensors.fit and set(tensors.tiers.values()) == {"gpu", "ram"}
    assert experts is not None and experts.policy.dynamic
    assert all(len(layer.tiers["gpu"]) in range(3, 24) for layer in experts.layers.values())


def test_run_takes_it(placed: Placed) -> None:
    command = ("run", placed.artifact, "-p", "Once upon a time", "-n", 16, "--threads", 1, "--json")
    told = json.loads(collab(*command, "--placement", placed.document))
    assert told["tokens"] == 16
    assert told["text"] == json.loads(collab(*command))["text"]


def test_ollama_takes_it(placed: Placed) -> None:
    if "COLLAB_OLLAMA" not in os.environ:
        pytest.skip("no Ollama: run make native, or name it in COLLAB_OLLAMA")
    with own_server(placed.folder, {}) as (_, client):
        create_model(placed.artifact, "placed", client, placed.folder)
    where = ("--host", free_url(), "--models", placed.folder / "models")
    found = json.loads(
        collab("ollama", "serve", "--placement", placed.document, "--load", "placed", "--check", "--json", *where)
    )
    here = [name for name, tier in placed.placement.tensors.tiers.items() if tier == "ram"]
    assert found["variables"] == {"LLAMA_ARG_FIT": "off", "LLAMA_ARG_OVERRIDE_TENSOR": override_of(here)}
    sizes = {name: info.nbytes for name, info in open_checkpoint(placed.artifact).tensors.items()}
    assert found["host_expert_bytes"] == sum(sizes[name] for name in here)


def test_every_target_verifies_under_it(placed: Placed, vllm: Vllm) -> None:
    pack = placed.folder / "pack"
    collab("verify", "pack", placed.artifact, "-o", pack, "--target", "llamacpp:cpu", "--threads", 1)
    targets = [part for name in ("llamacpp:cpu", "ollama", "vllm:cpu") for part in ("--target", name)]
    report = collab(
        *("verify", placed.artifact, "--against", pack, "--placement", placed.document, *targets, "--threads", 1),
        *("--level", "logits", "--level", "text", "--short", "--json"),
        COLLAB_VLLM=str(vllm.python),
        COLLAB_GGML=vllm.environment.get("COLLAB_GGML", ""),
    )
    verdicts = {target["name"]: target["verdict"] for target in json.loads(report)["targets"]}
    assert verdicts.pop("ollama") in ("pass", "not-run")
    assert verdicts == {"llamacpp:cpu": "pass", "vllm:cpu": "pass"}


@contextmanager
def served(placed: Placed, vllm: Vllm) -> Iterator[Server]:
    """vLLM under the document, every miss copied and experts rearranged every 4 steps."""
    options: dict[str, Any] = {"plan": str(placed.plan), "artifact": str(placed.artifact), "misses": "copy"}
    options |= {"placement": str(placed.document), "interval": 4}
    with vllm.serving(MODEL, options, "--enforce-eager", "--distributed-executor-backend", "uni") as server:
        yield server


def said(server: Server, token: int) -> dict[str, Any]:
    """What follows a token, with log-probabilities. One token a step, so that no time decides how it is computed."""
    answer = server.complete([token], max_tokens=48, logprobs=5, ignore_eos=True)
    logprobs: dict[str, Any] = answer["choices"][0]["logprobs"]
    return logprobs


def test_vllm_takes_it_and_a_kill_while_experts_move_loses_nothing(placed: Placed, vllm: Vllm) -> None:
    """Killed (SIGKILL) with requests in flight; no file has changed, and the next server says the same to the bit."""
    LlamaCppEngine().reference(
        placed.artifact, Windows((TEXT,), CTX, WINDOWS), out=placed.folder / "llama.npy", threads=1, progress=untold
    )
    windows = np.load(placed.folder / "llama.windows.npy").tolist()
    before = placed.hashes
    with served(placed, vllm) as server:
        first = [said(server, window[0]) for window in windows]
        found = [server.prompt_logprobs(window, VOCABULARY) for window in windows]
        moves = metrics(server, "collab_expert_moves_total")
        with ThreadPoolExecutor(4) as pool:
            going = [pool.submit(server.complete, w[:16], max_tokens=400, ignore_eos=True) for w in windows * 2]
            end = time.monotonic() + 60
            while metrics(server, "collab_expert_moves_total") <= moves and time.monotonic() < end:
                time.sleep(0.05)
            assert not any(request.done() for request in going)
            os.killpg(server.process.pid, signal.SIGKILL)
            for request in going:
                with suppress(OSError, ValueError, HTTPException):
                    request.result()
                    pytest.fail("a killed server answered")
        assert server.process.wait(30) == -signal.SIGKILL
    assert placed.hashes == before
    with served(placed, vllm) as server:
        assert [said(server, window[0]) for window in windows] == first
    ours = np.stack([dense(window) for window in found])[:, CTX // 2 :].astype(np.float64)
    llama = np.stack([unpack_logits(rows) for rows in np.load(placed.folder / "llama.npy")]).astype(np.float64)
    theirs = llama - np.log(np.exp(llama).sum(-1, keepdims=True))
    kld = (np.exp(theirs) * (theirs - ours)).sum(-1).mean()
    print("moves before the kill:", moves, "mean KLD to llama.cpp:", kld)
    assert moves > 0 and abs(kld) < 1e-2
