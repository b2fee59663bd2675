"""Complete file or none, whatever happens on the way; the same bytes however it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import filelock
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models.hand_made_plans import pruned, typed_plan
from small_models.tiny_moe import EXPERTS, some_stats, write_qwen3moe

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import write_plan

CHEAP = ("Q8_0", "Q4_K", "Q3_K", "F16", "BF16", "F32", "Q4_0")


def _quiet(done: float, total: float | None = None) -> None: ...


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(checkpoint: Checkpoint, plan: Plan, out: Path, threads: int = 2) -> Path:
    kernels = GgmlKernels()
    compress(checkpoint, plan, some_stats(checkpoint), out, kernels=kernels, threads=threads, report=_quiet)
    return out


def _leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("out.gguf"))


@pytest.mark.native
@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_bytes_do_not_depend_on_threads(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint = open_gguf(request.getfixturevalue(model))
    plan = typed_plan(checkpoint, lambda info: "Q4_K")
    outs = [_run(checkpoint, plan, tmp_path / f"{n}.gguf", threads=n) for n in (1, 3)]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert outs[0].stat().st_size == plan.bytes


@pytest.mark.native
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_predicted_bytes_are_the_files(
    model: str, data: st.DataObject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = open_gguf(request.getfixturevalue(model))
    plan = typed_plan(checkpoint, lambda info: data.draw(st.sampled_from(CHEAP)))
    kept = data.draw(st.permutations(range(EXPERTS)))[: data.draw(st.integers(2, EXPERTS))]
    plan = pruned(checkpoint, plan, kept)
    out = _run(checkpoint, plan, tmp_path / "out.gguf")
    assert out.stat().st_size == plan.bytes
    read = GGUFReader(out)
    assert {t.name: tuple(reversed(t.shape.tolist())) for t in read.tensors} == {
        name: (len(kept), *info.shape[1:]) if info.by_expert else info.shape
        for name, info in checkpoint.tensors.items()
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression import gguf_file as executor, journaled_work
from collab_plugin.plans.plan_file import read_plan

# Python ignores SIGINT when its parent did, as shells do for what they start in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
journaled_work.SYNC_SECONDS = 0.0
calls = 0

class Deadly(GgmlKernels):
    def quantize(self, values, type_name, imatrix=None):
        global calls
        calls += 1
        if calls == 6:
            os.kill(os.getpid(), int(sys.argv[4]))
        return super().quantize(values, type_name, imatrix)

executor.compress(open_gguf(Path(sys.argv[1])), read_plan(Path(sys.argv[2])), None, Path(sys.argv[3]),
                  kernels=Deadly(), threads=1, report=lambda done, total=None: None)
"""


@pytest.mark.native
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_resumes_to_the_same_bytes(how: signal.Signals, qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    plan = typed_plan(checkpoint, lambda info: "Q4_K")
    whole = tmp_path / "whole.gguf"
    kernels = GgmlKernels()
    compress(checkpoint, plan, None, whole, kernels=kernels, threads=1, report=_quiet)
    write_plan(tmp_path / "plan.json", plan)
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", KILLED, str(qwen3moe), str(tmp_path / "plan.json"), str(out), str(int(how))]
    dead = subprocess.run(command, capture_output=True, timeout=60)
    assert dead.returncode != 0
    lock = ["out.gguf.lock"] if how == signal.SIGKILL else []
    assert _leftovers(tmp_path) == ["out.gguf.journal", *lock, "out.gguf.partial"]
    result = compress(checkpoint, plan, None, out, kernels=kernels, threads=2, report=_quiet)
    assert 0 < result.resumed_tiles < result.tiles
    assert _sha(out) == _sha(whole)
    assert _leftovers(tmp_path) == ["out.gguf"]


@pytest.mark.native
@pytest.mark.parametrize(
    "journal", [b"", b"\x00\xff garbage", b'{"job": "another"}\n0123456789abcdef 0 1 2\n', b"[1, 2"]
)
def test_damaged_journal_starts_anew(journal: bytes, qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    plan = typed_plan(checkpoint, lambda info: "Q8_0")
    whole = _run(checkpoint, plan, tmp_path / "whole.gguf")
    (tmp_path / "out.gguf.partial").write_bytes(b"\xaa" * plan.bytes)
    (tmp_path / "out.gguf.journal").write_bytes(journal)
    assert _sha(_run(checkpoint, plan, tmp_path / "out.gguf")) == _sha(whole)


@pytest.mark.parametrize("where", ["a tile", "the header", "padding"])
def test_a_flipped_bit_of_what_is_finished_is_mended(where: str, qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    plan = copy_plan(checkpoint)
    out, part = tmp_path / "out.gguf", tmp_path / "out.gguf.partial"
    stopped = _stopped(checkpoint, plan, out, 5)
    layout = artifact_layout(checkpoint, plan)
    first = min(layout.offsets.values())
    at = {"a tile": first + 9, "the header": 30, "padding": first - 1}[where]
    data = bytearray(part.read_bytes())
    data[at] ^= 16
    part.write_bytes(data)
    result = compress(checkpoint, plan, None, out, kernels=None, threads=1, report=_quiet)
    assert result.resumed_tiles == stopped - (where == "a tile")
    assert _sha(out) == _sha(_run(checkpoint, plan, tmp_path / "whole.gguf"))


def test_a_source_that_changed_between_two_runs_begins_anew(qwen3moe: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(qwen3moe, tmp_path / "model.gguf"))
    out = tmp_path / "out.gguf"
    assert _stopped(open_gguf(source), copy_plan(open_gguf(source)), out, 5) > 0
    os.utime(source, ns=(1, 1))
    checkpoint = open_gguf(source)
    assert (
        compress(checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=_quiet).resumed_tiles
        == 0
    )


def test_a_source_that_changes_while_it_is_read(qwen3moe: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(qwen3moe, tmp_path / "model.gguf"))
    checkpoint = open_gguf(source)
    plan, out = copy_plan(checkpoint), tmp_path / "out.gguf"

    def touch(done: float, total: float | None = None) -> None:
        os.utime(source, ns=(1, 1))

    with pytest.raises(CollabError, match="was changed while it was read, so nothing that was written is trusted"):
        compress(checkpoint, plan, None, out, kernels=None, threads=1, report=touch)
    assert not out.exists()
    checkpoint = open_gguf(source)
    assert compress(checkpoint, plan, None, out, kernels=None, threads=1, report=_quiet).resumed_tiles == 0


def _stopped(checkpoint: Checkpoint, plan: Plan, out: Path, after: int) -> int:
    """A run that is interrupted after some tiles; how many it finished."""
    calls = 0

    def stop(done: float, total: float | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(checkpoint, plan, None, out, kernels=None, threads=1, report=stop)
    lines = out.with_name("out.gguf.journal").read_text().splitlines()[1:]
    return sum(len(line.split()) - 1 for line in lines)


def test_other_source_is_refused(qwen3moe: Path, deepseek2: Path, tmp_path: Path) -> None:
    plan = copy_plan(open_gguf(deepseek2))
    with pytest.raises(CollabError, match="another checkpoint"):
        _run(open_gguf(qwen3moe), plan, tmp_path / "out.gguf")
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("link", ["same", "hard", "symbolic"])
def test_source_is_never_the_output(link: str, qwen3moe: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    shutil.copy(qwen3moe, source)
    out = tmp_path / "out.gguf"
    if link == "hard":
        os.link(source, out)
    elif link == "symbolic":
        out.symlink_to(source)
    else:
        out = source
    checkpoint = open_gguf(source)
    with pytest.raises(CollabError, match="source"):
        _run(checkpoint, copy_plan(checkpoint), out)
    assert _sha(source) == _sha(qwen3moe)


def test_later_shard_is_never_the_output(qwen3moe: Path, tmp_path: Path) -> None:
    shards = _split(qwen3moe, tmp_path)
    before = _sha(shards[1])
    checkpoint = open_gguf(shards[0])
    with pytest.raises(CollabError, match="source"):
        _run(checkpoint, copy_plan(checkpoint), shards[1])
    assert _sha(shards[1]) == before


def _split(source: Path, folder: Path) -> list[Path]:
    """The model in two files, as llama-gguf-split names them."""
    from gguf import GGMLQuantizationType, GGUFValueType

    from collab_plugin.formats.gguf_layout import TensorSpec, layout
    from collab_plugin.formats.gguf_values import MetaValue

    checkpoint = open_gguf(source)
    names = list(checkpoint.tensors)
    paths = []
    for number, part in enumerate((names[:3], names[3:])):
        meta = dict(checkpoint.metadata) if number == 0 else {}
        meta["split.no"] = MetaValue(number, GGUFValueType.UINT16)
        meta["split.count"] = MetaValue(2, GGUFValueType.UINT16)
        meta["split.tensors.count"] = MetaValue(len(names), GGUFValueType.INT32)
        infos = [checkpoint.tensors[name] for name in part]
        plan = layout(meta, [TensorSpec(i.name, i.shape, GGMLQuantizationType(i.type)) for i in infos])
        data = bytearray(plan.total)
        data[: len(plan.header)] = plan.header
        for name in part:
            at = plan.offsets[name]
            data[at : at + plan.sizes[name]] = checkpoint.read_raw(name).tobytes()
        paths.append(folder / f"model-{number + 1:05d}-of-00002.gguf")
        paths[-1].write_bytes(data)
    return paths


def test_second_run_on_one_output_is_refused(qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    with filelock.FileLock(tmp_path / "out.gguf.lock"), pytest.raises(CollabError, match="another run is writing"):
        _run(checkpoint, copy_plan(checkpoint), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_full_disk_is_one_line(qwen3moe: Path, tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    try:
        checkpoint = open_gguf(qwen3moe)
        with pytest.raises(CollabError, match="no space") as error:
            _run(checkpoint, copy_plan(checkpoint), small / "out.gguf")
        assert "\n" not in str(error.value)
        assert _leftovers(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_write_limit_is_one_line(qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CollabError, match="no space"):
            _run(checkpoint, copy_plan(checkpoint), tmp_path / "out.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out.gguf").exists()


def test_plan_with_other_tensors_is_refused(qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    plan = copy_plan(checkpoint)
    fewer = dict(list(plan.tensors.items())[1:])
    with pytest.raises(CollabError, match="tensors differ"):
        _run(checkpoint, dataclasses.replace(plan, tensors=fewer), tmp_path / "out.gguf")


@pytest.mark.native
def test_allocations_do_not_grow_with_the_model(tmp_path: Path) -> None:
    """Python's allocations at their peak, for 4 and for 24 experts a layer: tiles are of one size."""
    peaks = []
    for experts in (4, 24):
        source = tmp_path / f"{experts}.gguf"
        write_qwen3moe(source, experts=experts)
        checkpoint = open_gguf(source)
        plan = typed_plan(checkpoint, lambda info: "Q8_0")
        kernels = GgmlKernels()
        kernels.prepare("Q8_0")
        tracemalloc.start()
        compress(checkpoint, plan, None, tmp_path / f"{experts}-out.gguf", kernels=kernels, threads=2, report=_quiet)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    largest_tile = 288 * 256 * 4
    assert peaks[1] < peaks[0] + 2 * largest_tile
