"""Placements: what they become in the environment, and what a real runner was told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from collab_ollama.server.placement_environment import environment_of, host_bytes, override_of
from collab_ollama.server.runner_process import runners_of
from hypothesis import given
from hypothesis import strategies as st
from real_ollama import TOOL, Ollama, Running, collab, free_port, mistake, running

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import PlacedArtifact, Placement, TensorPlacement, Tier
from collab_plugin.placement.placement_file import write_placement

GPU, HOST = Tier("gpu0", "gpu", 24 * 2**30), Tier("ram", "host", 128 * 2**30)
NAMES = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(12) for part in ("gate", "up", "down", "gate_up")]
OTHERS = ["blk.1.ffn_up.weight", "blk.1.ffn_up_shexp.weight", "blk.1.ffn_gate_inp.weight", "output.weight"]


def placed(experts: dict[str, str], tiers: tuple[Tier, ...] = (GPU, HOST), fit: bool = False) -> Placement:
    return Placement(PlacedArtifact("tiny", 1), tiers, TensorPlacement(experts, fit, {}, None), None, None, 128, ())


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_override_matches_these_tensors_alone(names: set[str]) -> None:
    # llama-model-loader.cpp:1245: std::regex_search, the first match wins; `,` and then `=` divide entries.
    patterns = [entry.rpartition("=")[0] for entry in override_of(names).split(",")]
    assert all(entry.endswith("=CPU") for entry in override_of(names).split(","))
    found = {name for name in (*NAMES, *OTHERS) if any(re.search(pattern, name) for pattern in patterns)}
    assert found == names


def test_without_experts_llama_cpp_fits_the_model() -> None:
    assert environment_of(placed({})) == {}
    assert environment_of(placed({NAMES[0]: "ram"}, fit=True)) == {}, "it does as well by itself"


def test_everything_on_the_gpu_switches_fitting_off() -> None:
    assert environment_of(placed({NAMES[0]: "gpu0"})) == {"LLAMA_ARG_FIT": "off"}


def test_one_of_two_gpus_is_refused() -> None:
    second = Tier("gpu1", "gpu", 24 * 2**30)
    with pytest.raises(CollabError, match="Ollama cannot choose among GPUs"):
        environment_of(placed({NAMES[0]: "gpu1"}, (GPU, second, HOST)))
    assert "LLAMA_ARG_OVERRIDE_TENSOR" in environment_of(placed({NAMES[0]: "ram"}, (GPU, second, HOST)))


def test_placement_of_another_model() -> None:
    with pytest.raises(CollabError, match="for another model"):
        host_bytes(placed({NAMES[0]: "ram"}), {"output.weight": 5})


@pytest.fixture(scope="module")
def placement(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experts of layer 1 and one tensor of layer 0 on the host."""
    path = tmp_path_factory.mktemp("placement") / "placement.json"
    names = [n for n in open_gguf(qwen3moe).tensors if n.startswith("blk.1.ffn_") and "_exps" in n]
    write_placement(path, placed(dict.fromkeys([*names, "blk.0.ffn_down_exps.weight"], "ram")))
    return path


@pytest.fixture(scope="module")
def tiny(server: Running, qwen3moe: Path) -> str:
    place = ("--host", server.url, "--models", server.models)
    options = ("--parameter", "num_thread=1", "--num-ctx", 128)
    done = collab("ollama", "create", qwen3moe, "--name", "placed", *place, *options)
    assert done.returncode == 0, done.stderr
    return "placed:latest"


def top_20(server: Running, name: str) -> list[dict[str, object]]:
    options = {"num_predict": 4, "temperature": 0}
    request = {"model": name, "prompt": "th th", "raw": True, "logprobs": True, "top_logprobs": 20, "options": options}
    steps: list[dict[str, object]] = server.client.generate(request)["logprobs"]
    return steps


@pytest.mark.slow
def test_what_was_applied_is_read_back(
    tiny: str, server: Running, ollama: Ollama, placement: Path, qwen3moe: Path, tmp_path: Path
) -> None:
    done = collab(
        *("ollama", "serve", "--placement", placement, "--load", tiny, "--check", "--json", "--ollama", ollama.program),
        *("--host", f"127.0.0.1:{free_port()}", "--models", server.models),
        **ollama.environment,
    )
    assert done.returncode == 0, done.stderr
    applied = json.loads(done.stdout)
    expected = r"^blk\.(0|1)\.(ffn_down_exps\.weight)$=CPU,^blk\.(1)\.(ffn_gate_exps\.weight|ffn_up_exps\.weight)$=CPU"
    assert applied["variables"] == {"LLAMA_ARG_FIT": "off", "LLAMA_ARG_OVERRIDE_TENSOR": expected}
    assert applied["host_expert_bytes"] == 4 * 4 * 256 * 256 * 4
    assert applied["context"] == 128
    assert "-ngl" not in applied["command"], "it would switch the fitting off, and win over the environment"
    host = sum(sizes.get("model", 0) for device, sizes in applied["buffers_mib"].items() if device.startswith("CPU"))
    assert host * 2**20 > applied["host_expert_bytes"]
    assert any("no GPU was found" in note for note in applied["notes"]) == (applied["bytes_on_gpu"] == 0)


@pytest.mark.slow
def test_llama_server_reads_the_override(tiny: str, server: Running, ollama: Ollama, tmp_path: Path) -> None:
    """The same variable with a buffer type that does not exist keeps the runner from starting."""
    (tmp_path / "models").symlink_to(server.models)
    with running(ollama, tmp_path, {"LLAMA_ARG_OVERRIDE_TENSOR": "^blk=NOWHERE"}) as broken:
        with pytest.raises(CollabError, match="Ollama refused /api/generate"):
            top_20(broken, tiny)
        words = 'error while handling environment variable "LLAMA_ARG_OVERRIDE_TENSOR": unknown buffer type'
        assert words in broken.log.read_text()


@pytest.mark.slow
def test_placement_changes_no_result(
    tiny: str, server: Running, ollama: Ollama, placement: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").symlink_to(server.models)
    override = override_of(["blk.0.ffn_down_exps.weight", "blk.1.ffn_up_exps.weight"])
    plain = top_20(server, tiny)
    with running(ollama, tmp_path, {"LLAMA_ARG_OVERRIDE_TENSOR": override, "LLAMA_ARG_FIT": "off"}) as other:
        assert top_20(other, tiny) == plain
        assert runners_of(other.pid)[0].variables["LLAMA_ARG_OVERRIDE_TENSOR"] == override


@pytest.mark.slow
def test_serves_until_it_is_ended(tiny: str, server: Running, ollama: Ollama, placement: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    place = ("--host", url, "--models", str(server.models), "--ollama", str(ollama.program))
    command = (*TOOL, "ollama", "serve", "--placement", str(placement), *place)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | ollama.environment) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == f"serving at {url}; Ctrl-C ends it\n"
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert "a server runs at" in mistake(collab("ollama", "serve", *place))
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert children


@pytest.mark.slow
def test_mistakes_of_serve(tiny: str, server: Running, ollama: Ollama, placement: Path, tmp_path: Path) -> None:
    place = ("--host", f"127.0.0.1:{free_port()}", "--models", server.models, "--ollama", ollama.program)
    done = collab("ollama", "serve", *place, "--load", "nowhere", "--check", **ollama.environment)
    assert "has no model nowhere:latest; create it there first" in mistake(done)
    done = collab("ollama", "serve", "--placement", tmp_path / "nowhere.json", *place)
    assert "cannot read the placement" in mistake(done)
    done = collab("ollama", "serve", *place[:4], "--ollama", "olama")
    assert "no Ollama program 'olama'" in mistake(done)
    other = tmp_path / "other.json"
    write_placement(other, placed({"blk.77.ffn_up_exps.weight": "ram"}))
    done = collab("ollama", "serve", "--placement", other, *place, "--load", tiny, "--check", **ollama.environment)
    assert "the placement is for another model" in mistake(done)
