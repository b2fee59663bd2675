"""Models on the hub: a server of ours answers huggingface_hub's client in a process of its own, and counts bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models.gguf_bytes import gguf
from small_models.gguf_copies import write_copy
from small_models.hand_made_plans import pruned
from small_models.hf_folder import qwen, write_folder
from small_models.hub_server import COMMIT, TOKEN, Hub, hub_server

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import GgufCheckpoint
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint, open_safetensors
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan_file import read_plan, write_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

MODELS = Path(__file__).parents[1] / "models"
QWEN = MODELS / "tiny-qwen3moe"
# Several commands in one process: to start one costs more than they do.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from collab_plugin.cli.main import main
found = [CliRunner().invoke(main, command) for command in json.loads(sys.argv[1])]
print(json.dumps([[r.exit_code, r.stdout, r.stderr] for r in found]))
"""
# The library's own download, on a disk that is full when a file whose address ends so is to be written.
FULL_DISK = """
import errno, os
from huggingface_hub import file_download
get = file_download.http_get
def full(url, *args, **more):
    if url.endswith("{}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return get(url, *args, **more)
file_download.http_get = full
"""
FETCH = "import sys; from collab_plugin import open_checkpoint as o; print(o(sys.argv[1]).local())"
Results = list[tuple[int, str, str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server({"org/qwen": QWEN}) as hub:
        yield hub


def _environment(hub: Hub, home: Path) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return env | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


def _run(hub: Hub, home: Path, *commands: list[str], before: str = "", **variables: str) -> Results:
    command = [sys.executable, "-c", before + COMMANDS, json.dumps(commands)]
    env = _environment(hub, home) | variables
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


def test_inspect_reads_headers_alone(hub: Hub, qwen3moe: Path, tmp_path: Path) -> None:
    hub.repos["org/gguf"] = qwen3moe.parent
    addresses = ("hf://org/qwen", f"hf://org/gguf/{qwen3moe.name}")
    (code, out, _), (other, gguf_out, _) = _run(hub, tmp_path, *(["inspect", a, "--json"] for a in addresses))
    assert (code, other) == (0, 0)
    told = json.loads(out)
    assert json.loads(gguf_out)["expert_count"] == 4
    assert hub.served.pop(qwen3moe.name) == 2**16
    assert told["expert_count"] == 32 and told["name"] == "qwen"
    assert told["notes"] == [f"read from hf://org/qwen@{COMMIT}"]
    assert hub.weights() == 2**16  # the header has 40 kB; it is read in one piece of that size
    snapshot = tmp_path / "hub" / "models--org--qwen" / "snapshots" / COMMIT
    assert (snapshot / "config.json").is_symlink()
    assert (snapshot / "config.json").resolve().parent.name == "blobs"
    assert not (snapshot / "model.safetensors").exists()
    assert "README.md" not in hub.served


def test_pruned_experts_are_never_read(hub: Hub, tmp_path: Path) -> None:
    """`compress` of half of the experts reads their bytes, what is not an expert, and little else."""
    local = open_safetensors(QWEN)
    kept = tuple(range(0, 32, 2))
    plan = pruned(local, copy_plan(local), kept)
    write_plan(tmp_path / "plan.json", plan)
    args = ["--plan", str(tmp_path / "plan.json"), "--json"]
    ((code, _, errors), again) = _run(
        hub,
        tmp_path,
        ["compress", "hf://org/qwen", *args, "-o", str(tmp_path / "far.gguf")],
        ["compress", str(QWEN), *args, "-o", str(tmp_path / "near.gguf")],
    )
    assert (code, again[0]) == (0, 0), errors
    assert _same_tensors(tmp_path)
    experts = sum(info.nbytes for info in local.tensors.values() if info.role == Role.EXPERT)
    whole = sum(info.nbytes for info in local.tensors.values())
    needed = whole - experts // 2
    assert needed <= hub.weights() < 1.06 * needed
    assert len(set(hub.ranges)) == len(hub.ranges), "no thread fetches what another one has"
    assert hub.weights() < 0.6 * whole
    dropped = {
        (matrix.parts[0].start, matrix.parts[0].stop)
        for name, info in local.tensors.items()
        if info.role == Role.EXPERT
        for expert, matrix in enumerate(local.stored(name))
        if expert % 2
    }
    long = [(start, stop) for name, start, stop in hub.ranges if name == "model.safetensors" and stop - start > 2**16]
    assert long and not dropped & set(long)


def _same_tensors(folder: Path) -> bool:
    """The name of the model differs in length, which moves the data."""
    from collab_plugin.checkpoint.gguf import open_gguf

    far, near = open_gguf(folder / "far.gguf"), open_gguf(folder / "near.gguf")
    return list(far.tensors) == list(near.tensors) and all(
        (far.read_raw(name) == near.read_raw(name)).all() for name in far.tensors
    )


def test_a_plan_records_the_revision(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    ((code, _, errors),) = _run(hub, tmp_path, ["plan", "hf://org/qwen@main", "--keep-types", "-o", str(out)])
    assert code == 0, errors
    plan = read_plan(out)
    assert f"read from hf://org/qwen@{COMMIT}" in plan.notes
    assert plan.source.fingerprint == copy_plan(open_safetensors(QWEN)).source.fingerprint


def test_only_needed_files_of_the_pinned_commit(hub: Hub, tmp_path: Path) -> None:
    """Repositories hold the same weights several times (huggingface/huggingface_hub issue 2831)."""
    hub.repos["org/m"] = write_folder(tmp_path / "m", *qwen(), shards=2)
    needed = {path.name for path in hub.repos["org/m"].iterdir()}
    for name in ("pytorch_model.bin", "consolidated.safetensors", "tf_model.h5", "README.md", "onnx/model.onnx"):
        (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes(bytes(1000))
    fetch = [sys.executable, "-c", FETCH, "hf://org/m@main"]
    done = subprocess.run(fetch, env=_environment(hub, tmp_path / "home"), check=True, capture_output=True, text=True)
    assert set(hub.served) == needed
    assert {path.name for path in Path(done.stdout.strip()).iterdir()} == needed
    assert hub.revisions == {COMMIT}


def test_pruned_experts_of_other_ways(hub: Hub, qwen3moe: Path, tmp_path: Path) -> None:
    """Shards of a GGUF, of which a GGUF is made, and shards of a folder, of which a folder is made."""
    write_copy(qwen3moe, tmp_path / "gguf.gguf", split=9)
    (tmp_path / "shards").mkdir()
    for path in sorted(tmp_path.glob("gguf-*.gguf")):
        path.rename(tmp_path / "shards" / path.name)
    hub.repos |= {"org/gguf": tmp_path / "shards", "org/m": write_folder(tmp_path / "m", *qwen(), shards=2)}
    first = min(hub.repos["org/gguf"].iterdir()).name
    addresses = {"gguf": f"hf://org/gguf/{first}", "m": "hf://org/m"}
    commands, experts = [], dict[tuple[str, int, int], bool]()
    for name, address in addresses.items():
        local = open_checkpoint(hub.repos[f"org/{name}"])
        plan = pruned(local, copy_plan(local), (3, 1))
        write_plan(tmp_path / f"{name}.json", plan)
        how = ["--format", "safetensors", "--precision", "original"] if name == "m" else []
        for place, source in (("far", address), ("near", str(hub.repos[f"org/{name}"]))):
            out = tmp_path / f"{name}-{place}"
            commands.append(["compress", source, "--plan", str(tmp_path / f"{name}.json"), *how, "-o", str(out)])
        experts |= {place: expert in (3, 1) for place, expert in _places(local)}
    results = _run(hub, tmp_path / "home", *commands)
    assert [code for code, _, _ in results] == [0] * 4, results
    assert len(experts) == 2 * 3 * 4 + 3 * 4
    assert {place: place in hub.ranges for place in experts} == experts, "kept experts were read, and no others"
    for name in addresses:
        far, near = (open_checkpoint(tmp_path / f"{name}-{place}") for place in ("far", "near"))
        assert list(far.tensors) == list(near.tensors)
        assert all((far.read_raw(tensor) == near.read_raw(tensor)).all() for tensor in far.tensors)


def _places(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, int, int], int]]:
    """File, first byte and end of every expert matrix, and its expert."""
    for name, info in checkpoint.tensors.items():
        for expert in range(info.shape[0]) if info.role == Role.EXPERT else ():
            if isinstance(checkpoint, GgufCheckpoint):
                place, size = checkpoint._places[name], info.nbytes // info.shape[0]
                start = place.stored.offset + expert * size
                yield (Path(place.file.where).name, start, start + size), expert
            elif isinstance(checkpoint, SafetensorsCheckpoint):
                part = checkpoint.stored(name)[expert].parts[0]
                yield (Path(part.file.where).name, part.start, part.stop), expert


def test_a_full_disk(hub: Hub, tmp_path: Path) -> None:
    ((code, _, errors),) = _run(hub, tmp_path / "home", ["inspect", "hf://org/qwen"], before=FULL_DISK.format(""))
    assert code == 2
    says = f"no space to download hf://org/qwen@{COMMIT}: free some, or set HF_HOME to another disk"
    assert errors.splitlines() == [f"error: {says}"]


def test_an_ended_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    """With the files that are not there yet."""
    hub.repos["org/m"] = write_folder(tmp_path / "m", *qwen(), shards=2)
    env = _environment(hub, tmp_path / "home")
    ended = [sys.executable, "-c", FULL_DISK.format("00002-of-00002.safetensors") + FETCH, "hf://org/m"]
    done = subprocess.run(ended, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert "no space to download" in done.stderr
    once = hub.served.pop("model-00001-of-00002.safetensors")
    subprocess.run([sys.executable, "-c", FETCH, "hf://org/m"], env=env, capture_output=True, check=True, timeout=120)
    assert once > 10**6
    assert "model-00001-of-00002.safetensors" not in hub.served
    second = hub.repos["org/m"] / "model-00002-of-00002.safetensors"
    assert hub.served[second.name] >= second.stat().st_size


def test_mistakes_are_one_line(hub: Hub, tmp_path: Path) -> None:
    small = write_folder(tmp_path / "small", *qwen(), shards=2)
    hub.repos |= {"org/gated": small, "org/private": small, "org/gguf": tmp_path / "gguf"}
    hub.gated.add("org/gated")
    hub.private.add("org/private")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "a.gguf").write_bytes(gguf())
    (tmp_path / "gguf" / "b.gguf").write_bytes(gguf())
    says = {
        "hf://org/none": "is not on the hub, or private",
        "hf://org/gated": "is gated: ask for access",
        "hf://org/private": "set HF_TOKEN for a private model",
        "hf://org/qwen@v9": "no such revision",
        "hf://org/qwen/gone.gguf": "has no gone.gguf at commit 0123456789ab",
        "hf://org/gguf": f"name the one to open, such as hf://org/gguf@{COMMIT}/a.gguf",
        "hf://org/gguf/a.gguf": "has no routed experts",
        "hf://qwen": "write hf://organization/name",
        "hf://org/--x": "is no model on the hub",
    }
    results = _run(hub, tmp_path / "home", *(["inspect", address] for address in says))
    for (address, told), (code, _, errors) in zip(says.items(), results, strict=True):
        assert code == 2, (address, errors)
        assert told in errors and len(errors.splitlines()) == 1, (address, errors)
    (found,) = _run(hub, tmp_path / "home", ["inspect", "hf://org/private"], HF_TOKEN=TOKEN)
    assert found[0] == 0, found[2]


def test_without_a_network(hub: Hub, tmp_path: Path) -> None:
    """What was fetched serves offline; what was not is told."""
    hub.cut["model.safetensors"] = 25_000_000
    home, size = tmp_path / "home", (QWEN / "model.safetensors").stat().st_size
    fetch = [sys.executable, "-c", FETCH, "hf://org/qwen"]
    subprocess.run(fetch, env=_environment(hub, home), check=True, capture_output=True, timeout=120)
    assert not hub.cut
    assert size < hub.served["model.safetensors"] < size + 12_000_000, "it went on near where the connection broke"
    assert "README.md" not in hub.served
    have, have_not = _run(hub, home, ["inspect", "hf://org/qwen"], ["inspect", "hf://org/other"], HF_HUB_OFFLINE="1")
    assert have[0] == 0, have[2]
    assert have_not[0] == 2
    assert "is not in the cache of this machine" in have_not[2]
    hub.endpoint = "http://127.0.0.1:9"
    ((code, _, errors),) = _run(hub, tmp_path / "new", ["inspect", "hf://org/qwen"])
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "cannot be had" in errors and "is the network up?" in errors
