"""A calibration that was stopped goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from collab_llamacpp.calibrate.job_types import CalibrateJob
from collab_llamacpp.calibrate.llamacpp_child import run_job
from engine_calls import CTX

import collab_plugin as cp
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.text_windows import text_cut
from collab_plugin.formats import atomic_write
from collab_plugin.progress import Progress


def _stopped(model: Path, text: Path, kept: Path, after: int) -> None:
    """A run that keeps what it has done after each window, and is stopped when it tells of more than ``after``."""
    checkpoint = open_gguf(model)
    topology, windows = topology_of(checkpoint), Windows((text,), CTX, seed=0)
    job = CalibrateJob(
        str(model), 1, text_cut(windows, checkpoint.metadata), topology.expert_count, topology.architecture,
        unfinished=str(kept), save_seconds=0,
    )  # fmt: skip

    def stop(line: dict[str, Any]) -> None:
        if line["done"] > after * CTX:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, "calibrate", stop)


@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_it_goes_on_to_the_same_bytes(model: str, prose: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    out, told = tmp_path / "stats.gguf", list[Progress]()
    _stopped(path, prose, tmp_path / "stats.gguf.unfinished", 3)
    cp.calibrate(path, texts=prose, ctx=CTX, out=out, threads=1, progress=told.append)
    first = next(event.earlier for event in told if event.taken_up)
    assert first > 2 * CTX  # what was kept, and at most one window more
    cp.calibrate(path, texts=prose, ctx=CTX, out=tmp_path / "whole.gguf", threads=1)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stats.gguf", "whole.gguf"]


@pytest.mark.parametrize("kept", ["of other text", "damaged", "of another program"])
def test_what_is_not_its_own_does_not_count(kept: str, qwen3moe: Path, prose: Path, code: Path, tmp_path: Path) -> None:
    unfinished, out = tmp_path / "stats.gguf.unfinished", tmp_path / "stats.gguf"
    if kept == "of another program":
        unfinished.write_bytes(b"something else")
    else:
        _stopped(qwen3moe, code if kept == "of other text" else prose, unfinished, 2)
    if kept == "damaged":
        unfinished.write_bytes(unfinished.read_bytes()[:-100])
    cp.calibrate(qwen3moe, texts=prose, ctx=CTX, chunks=None, out=out, threads=1)
    cp.calibrate(qwen3moe, texts=prose, ctx=CTX, out=tmp_path / "whole.gguf", threads=1)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not unfinished.exists()


def test_what_was_kept_survives_a_full_disk(
    qwen3moe: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished, out = tmp_path / "stats.gguf.unfinished", tmp_path / "stats.gguf"
    _stopped(qwen3moe, prose, unfinished, 3)

    def refuse(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write, "write_synced", refuse)
        with pytest.raises(cp.CollabError, match="no space"):
            cp.calibrate(qwen3moe, texts=prose, ctx=CTX, out=out, threads=1)
    assert [file.name for file in tmp_path.iterdir()] == [unfinished.name]
    told = list[Progress]()
    cp.calibrate(qwen3moe, texts=prose, ctx=CTX, out=out, threads=1, progress=told.append)
    assert next(event.earlier for event in told if event.taken_up) > 2 * CTX
