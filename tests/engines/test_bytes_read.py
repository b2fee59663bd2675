"""What a step reads from disks: by this process and by those that it started, ended ones too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from collab_plugin.engines import bytes_read as counting
from collab_plugin.engines.bytes_read import bytes_read
from collab_plugin.progress import Progress, track

READ = """
import os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
print(sum(len(part) for part in iter(lambda: os.read(handle, 2**20), b"")), flush=True)
input()
"""


@pytest.mark.skipif(not hasattr(psutil.Process, "io_counters"), reason="the system does not tell")
def test_a_child_counts_while_it_runs_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SECONDS_BETWEEN", 0)
    size = 2**23
    with (tmp_path / "data").open("wb") as file:
        file.write(bytes(range(256)) * (size // 256))
        file.flush()
        os.fsync(file.fileno())
    read = bytes_read()
    with subprocess.Popen(
        [sys.executable, "-c", READ, tmp_path / "data"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == size
        meanwhile = read() or 0
        if meanwhile < size:
            child.communicate(b"\n")
            pytest.skip("this file system does not drop what it holds, or counts nothing")
        child.communicate(b"\n")
    assert (read() or 0) >= meanwhile >= size


def test_progress_tells_it() -> None:
    told: list[Progress] = []
    with track(told.append, "calibrating", 4, "tokens", read=lambda: 3_200_000_000) as advance:
        advance(4)
    assert str(told[-1]).startswith("calibrating: 4 of 4 tokens, ")
    assert ", 3.2 GB read, " in str(told[-1])
